"""What fresh processes find for tiny settings, and what they say when they cannot."""

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch

from sparse_tx.errors import UserError
from sparse_tx.model import GPT
from sparse_tx.profiler import measure as module
from sparse_tx.profiler.measure import measure
from sparse_tx.profiler.memory import peak_resident_bytes
from sparse_tx.profiler.records import WORKS, Measurement
from tests.profiler.helpers import make_endless_setting, make_setting


@pytest.mark.parametrize("work", WORKS)
def test_all_is_found(work, capfd):
    found = measure(make_setting(work), rounds=2)
    assert found.failure is None
    assert found.engine in ("cpu", "views")
    generates = work in ("prefill", "decode")
    assert found.decoder in (("NativeDecoder", "CachedDecoder") if generates else ("",))
    assert len(found.seconds) == 2
    assert all(seconds > 0 for seconds in found.seconds)
    assert found.peak_bytes >= 0
    assert found.baseline_bytes > 0
    assert ("other.forward" if work == "decode" else "attention.forward") in found.parts_s
    assert capfd.readouterr() == ("", "")


def test_only_what_is_wanted_is_found():
    found = measure(make_setting("forward"), rounds=2, want=("peak",))
    assert (found.seconds, found.parts_s) == ((), {})
    assert found.peak_bytes is not None
    found = measure(make_setting("forward"), rounds=2, want=("parts",))
    assert (found.seconds, found.peak_bytes) == ((), None)
    assert found.parts_s


def test_the_peak_of_a_training_step_is_that_of_a_steady_one():
    """Hardly more than weights, gradients and AdamW's two moments, where tokens are few."""
    setting = make_setting("train", seq_len=5, n_embd=512, n_layer=3, pattern="local:5")
    weights = 4 * GPT(setting.model).n_parameters()
    found = measure(setting, rounds=1, want=("peak",))
    assert 4 * weights < found.peak_bytes < 4.5 * weights


def test_the_peak_counts_what_is_held_at_once():
    """Each layer's attention holds q, k, v, out, four gradients; layers do so one by one."""
    setting = make_setting(
        "attention", {"batch_size": 1}, seq_len=30_000, n_embd=64, pattern="local:5*9"
    )
    tensor = 4 * 30_000 * 64
    found = measure(setting, rounds=1, want=("peak",))
    assert 8 * tensor < found.peak_bytes < 12 * tensor


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ({"engine": "triton"}, {}, "'triton' cannot run here"),
        ({}, {"rounds": 0}, "rounds is 0; it must be 1 or more"),
        ({}, {"time_limit_s": 0}, "time_limit_s is 0; it must be more than 0"),
        ({}, {"memory_limit_bytes": -1}, "memory_limit_bytes is -1; it must be more than 0"),
        ({}, {"want": ("speed",)}, "it must be one or more of seconds, peak, parts"),
        ({}, {"want": ()}, "it must be one or more of seconds, peak, parts"),
    ],
)
def test_what_cannot_be_measured(model, options, message):
    with pytest.raises(UserError, match=message):
        measure(make_setting(**model), **{"rounds": 1} | options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    from dataclasses import replace

    with pytest.raises(UserError, match="torch sees no GPU here; measure on the device cpu"):
        measure(replace(make_setting(), device="cuda"), rounds=1)


@pytest.mark.parametrize("want", [("peak",), ("seconds",)])
def test_too_little_memory(want):
    limit = 60_000_000
    setting = make_setting("train", seq_len=30_000, n_embd=64)
    found = measure(setting, rounds=1, memory_limit_bytes=limit, want=want)
    assert found.failure.startswith("out of memory: an allocation failed, having held ")
    assert 0 < found.peak_bytes <= limit
    assert found.engine in ("cpu", "views")
    assert found.seconds == ()


def test_too_little_time():
    found = measure(make_endless_setting(), rounds=3, time_limit_s=4)
    assert found.failure == "took longer than 4 s"
    assert found.seconds == ()


def test_a_killed_process():
    """As the kernel does it when memory runs out."""

    end = time.monotonic() + 60

    def kill_when_large():
        while time.monotonic() < end:
            for process in multiprocessing.active_children():
                if peak_resident_bytes(process.pid) > 600_000_000:
                    time.sleep(0.3)  # that it be seen
                    os.kill(process.pid, signal.SIGKILL)
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_when_large)
    killer.start()
    found = measure(make_endless_setting(), rounds=1, want=("peak",), time_limit_s=60)
    killer.join()
    assert found.failure.startswith("out of memory: the process was killed, having held ")
    assert found.peak_bytes + found.baseline_bytes > 600_000_000


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (9, ["warm_up"]),
        (19, ["warm_up"]),  # a round may take a little longer than the one before
        (25, ["warm_up", "seconds"]),
        (35, ["warm_up", "seconds", "parts"]),
        (45, ["warm_up", "seconds", "parts", "seconds"]),
        (1000, ["warm_up", "seconds", "parts", "seconds", "seconds"]),
    ],
)
def test_rounds_are_left_out_where_time_does_not_suffice(limit, expected, monkeypatch):
    """With a clock by which each round takes ten seconds."""
    now = [0.0]
    monkeypatch.setattr(module, "time", type("Clock", (), {"monotonic": lambda: now[0]}))

    def ten_seconds(work, device):
        now[0] += 10
        return 10.0

    monkeypatch.setattr(module, "_seconds", ten_seconds)
    monkeypatch.setattr(module, "measure_parts", ten_seconds)
    told = []
    module._tell_seconds(
        lambda name, value: told.append(name), make_setting(), 3, True, limit, None
    )
    assert [name for name in told if name not in ("baseline", "engine", "decoder")] == expected


def test_the_round_that_should_not_count_is_better_than_none():
    ending = module.Ending(told={"engine": ["cpu"], "warm_up": [3.0]}, cause="time")
    assert module._with_ending(Measurement(), ending, 5) == Measurement(
        engine="cpu", seconds=(3.0,)
    )


def test_what_was_found_before_a_failure_is_kept():
    before = Measurement(engine="cpu", peak_bytes=7, baseline_bytes=5)
    told = {"engine": ["cpu"], "baseline": [6], "warm_up": [3.0], "seconds": [1.0, 2.0]}
    ending = module.Ending(told=told, cause="memory", killed=True, peak_bytes=100)
    assert module._with_ending(before, ending, None) == Measurement(
        engine="cpu",
        seconds=(1.0, 2.0),
        peak_bytes=7,
        baseline_bytes=5,
        failure="out of memory: the process was killed, having held 0 MB",
    )
