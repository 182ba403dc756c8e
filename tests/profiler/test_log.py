"""The log of measurements: what it gives back, what it does not, and damage."""

import json
from dataclasses import replace

import pytest

from sparse_tx.errors import UserError
from sparse_tx.profiler import log as module
from sparse_tx.profiler.log import MeasurementLog
from sparse_tx.profiler.records import Measurement
from tests.profiler.helpers import make_setting

FOUND = Measurement(
    engine="cpu",
    seconds=(0.1, 0.25, 1e-7),
    peak_bytes=1 << 40,
    baseline_bytes=5,
    parts_s={"attention.forward": 0.05},
)
ALL = ("seconds", "peak", "parts")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new folder" / "measurements.jsonl"


def test_it_gives_back_what_was_added(path):
    log = MeasurementLog(path)
    setting = make_setting(position_shape=(5, 8))
    assert log.find(setting, ALL, 3) is None
    log.add(setting, FOUND, rounds=3)
    for again in (log, MeasurementLog(path)):
        assert again.find(setting, ALL, 3) == FOUND
        assert again.find(replace(setting, label="as written"), ("peak",), 1) == FOUND
        assert again.find(setting, ALL, 4) is None
    log.add(setting, replace(FOUND, engine="views"), rounds=3)
    assert MeasurementLog(path).find(setting, ALL, 3).engine == "views"


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (make_setting(seq_len=38), False),
        (make_setting("forward"), False),
        (make_setting(recompute=True), False),
        (make_setting(training={"batch_size": 4}), False),
        (make_setting(training={"optimiser": "muon"}), False),
        (make_setting(training={"precision": "bf16"}), False),
        (make_setting(training={"ema": 0.5}), False),
        (make_setting(training={"lr": 0.5, "max_steps": 7}), True),
        (replace(make_setting(), device="cuda"), False),
    ],
)
def test_what_decides_the_cost(other, same, path, monkeypatch):
    monkeypatch.setattr(module, "measured_on", lambda device: {})
    log = MeasurementLog(path)
    log.add(make_setting(), FOUND, rounds=3)
    assert (log.find(other, ALL, 3) == FOUND) is same


@pytest.mark.parametrize("what", ["processor", "vectors", "threads", "torch", "code"])
def test_another_machine_or_torch_or_code(what, path, monkeypatch):
    log = MeasurementLog(path)
    log.add(make_setting(), FOUND, rounds=3)
    here = module.measured_on("cpu")
    assert what in here
    monkeypatch.setattr(module, "measured_on", lambda device: here | {what: "another"})
    assert MeasurementLog(path).find(make_setting(), ALL, 3) is None


def test_a_limit_is_tried_again_only_if_it_is_larger(path):
    log, setting = MeasurementLog(path), make_setting()
    asked = dict(want=("seconds",), rounds=3)
    failed = Measurement(failure="took longer than 9 s")
    log.add(setting, failed, **asked, time_limit_s=9, memory_limit_bytes=1000)
    limits = dict(time_limit_s=9, memory_limit_bytes=1000)
    assert log.find(setting, **asked, **limits) == failed
    assert log.find(setting, **asked, **limits | {"time_limit_s": 8}) == failed
    assert log.find(setting, **asked, **limits | {"time_limit_s": 10}) is None
    assert log.find(setting, **asked, **limits | {"time_limit_s": None}) is None
    assert log.find(setting, **asked, **limits | {"memory_limit_bytes": None}) is None
    assert log.find(setting, **asked | {"rounds": 4}, **limits) is None
    assert log.find(setting, **asked | {"want": ALL}, **limits) is None


def test_fewer_rounds_than_asked_for_stand_if_time_was_short(path):
    log, setting = MeasurementLog(path), make_setting()
    log.add(setting, FOUND, rounds=5, time_limit_s=9)
    assert log.find(setting, ALL, 5, time_limit_s=9) == FOUND
    assert log.find(setting, ALL, 5, time_limit_s=99) is None
    assert log.find(setting, ALL, 3, time_limit_s=99) == FOUND


@pytest.mark.parametrize("kept", [1, -1])
def test_a_line_cut_short_is_written_over(kept, path):
    log = MeasurementLog(path)
    log.add(make_setting(), FOUND, rounds=3)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    log = MeasurementLog(path)
    assert log.find(make_setting(), ALL, 3) == FOUND
    log.add(make_setting("forward"), FOUND, rounds=3)
    assert path.read_bytes().startswith(whole)
    assert [json.loads(line)["key"]["work"] for line in path.read_text().splitlines()] == [
        "train",
        "forward",
    ]
    assert MeasurementLog(path).find(make_setting("forward"), ALL, 3) == FOUND


@pytest.mark.parametrize(
    "damage", [b"{\n", b"\n", b"3\n", b"{}\n", b'{"measurement": {"seconds": 3}}\n', b"\0\xff\n"]
)
def test_damage_is_named_with_its_line(damage, path):
    log = MeasurementLog(path)
    log.add(make_setting(), FOUND, rounds=3)
    whole = path.read_bytes()
    path.write_bytes(whole + damage + whole)
    with pytest.raises(UserError, match=r"line 2 of .*measurements\.jsonl is not a measurement"):
        MeasurementLog(path)


def test_a_file_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        MeasurementLog(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        MeasurementLog(tmp_path / "file" / "log").add(make_setting(), FOUND, rounds=3)


def test_two_processes_that_go_on_from_one_file(path):
    """Both have seen a line that a kill cut short; only one of them cuts it off."""
    MeasurementLog(path).add(make_setting(), FOUND, rounds=3)
    path.write_bytes(path.read_bytes() + b'{"key":')
    one, other = MeasurementLog(path), MeasurementLog(path)
    one.add(make_setting("forward"), FOUND, rounds=3)
    other.add(make_setting("attention"), FOUND, rounds=3)
    one.add(make_setting("prefill"), FOUND, rounds=3)
    works = [json.loads(line)["key"]["work"] for line in path.read_text().splitlines()]
    assert works == ["train", "forward", "attention", "prefill"]
