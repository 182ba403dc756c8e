"""Seconds, peak memory and parts of one setting, each found in a process of its own."""

import gc
import time
from dataclasses import replace
from math import inf
from typing import Literal, get_args

import torch

from sparse_tx.errors import UserError
from sparse_tx.profiler.machine import Stopwatch, clock
from sparse_tx.profiler.memory import (
    give_back_freed_memory,
    limit_memory,
    peak_is_known,
    peak_resident_bytes,
    reset_peak,
    resident_bytes,
)
from sparse_tx.profiler.parts import measure_parts
from sparse_tx.profiler.processes import Ending, Tell, run_in_fresh_process
from sparse_tx.profiler.records import Measurement, Setting
from sparse_tx.profiler.works import Doable, make_work, small

Want = Literal["seconds", "peak", "parts"]
"""What is to be found: the time of rounds, the most memory held, the time of each part."""

WANTS: tuple[Want, ...] = get_args(Want)

# How the sentence of a failure begins.
OUT_OF_MEMORY, TOO_LONG = "out of memory", "took longer than"

# What a round may take beyond the longest one before it.
_SPARE = 1.1


def measure(
    setting: Setting,
    *,
    rounds: int,
    time_limit_s: float | None = None,
    memory_limit_bytes: int | None = None,
    want: tuple[Want, ...] = WANTS,
) -> Measurement:
    """Find what a setting costs on this machine.

    Peak memory comes from one process, times and parts from another. Both first do the same work on
    a small model. The peak is that of the work once everything is there: of a training step, the
    second. On a CPU malloc then gives back at once what is freed. Times are of rounds after one
    that does not count; those of attention are the device's, those of a model the clock's.

    Args:
        setting: what is measured.
        rounds: that are timed; fewer where time does not suffice, and if it does not suffice for
            one, the round that should not count is the only one.
        time_limit_s: seconds that each process may take; None for any time.
        memory_limit_bytes: what each process may allocate beyond what it held before it made the
            model; None for all that there is.
        want: what is to be found. Parts are of one more round.

    Returns:
        What was found; where memory or time did not suffice, ``failure`` says so, and what was
        found before stands beside it.

    Raises:
        UserError: the setting cannot run on this machine; rounds, a limit or ``want`` is not among
            what there is.
        RuntimeError: anything else went wrong in a process, with its traceback.
    """
    _check(rounds, time_limit_s, memory_limit_bytes, want)
    found = Measurement()
    if "peak" in want:
        ending = run_in_fresh_process(
            _tell_peak, setting, memory_limit_bytes, time_limit_s=time_limit_s
        )
        found = _with_ending(found, ending, time_limit_s)
    if found.failure is None and {"seconds", "parts"} & set(want):
        ending = run_in_fresh_process(
            _tell_seconds,
            setting,
            rounds if "seconds" in want else 0,
            "parts" in want,
            time_limit_s or inf,
            memory_limit_bytes,
            time_limit_s=time_limit_s,
        )
        found = _with_ending(found, ending, time_limit_s)
        if "seconds" not in want:
            found = replace(found, seconds=())
    return found


def _check(
    rounds: int, time_limit_s: float | None, memory_limit_bytes: int | None, want: tuple
) -> None:
    if rounds < 1:
        raise UserError(f"rounds is {rounds}; it must be 1 or more")
    for name, limit in (("time_limit_s", time_limit_s), ("memory_limit_bytes", memory_limit_bytes)):
        if limit is not None and not limit > 0:
            raise UserError(f"{name} is {limit}; it must be more than 0, or None for no limit")
    if not want or not set(want) <= set(WANTS):
        raise UserError(f"want is {want}; it must be one or more of {', '.join(WANTS)}")


def _with_ending(found: Measurement, ending: Ending, time_limit_s: float | None) -> Measurement:
    """What was found so far, and what a further process has told."""
    told = {name: values[-1] for name, values in ending.told.items()}
    seconds = tuple(ending.told.get("seconds") or ending.told.get("warm_up") or ())
    peak = told.get("peak")
    if peak is None and ending.cause and "baseline" in told:
        on_gpu = told.get("peak_before_failure")
        peak = on_gpu or (max(0, ending.peak_bytes - told["baseline"]) or None)
    peak = peak if found.peak_bytes is None else found.peak_bytes
    return Measurement(
        engine=told.get("engine", found.engine),
        decoder=told.get("decoder", found.decoder),
        seconds=seconds,
        peak_bytes=peak,
        baseline_bytes=found.baseline_bytes or told.get("baseline", 0),
        parts_s=told.get("parts", {}),
        failure=_failure(ending, peak, time_limit_s, enough=bool(seconds)),
    )


def _failure(
    ending: Ending, peak: int | None, time_limit_s: float | None, *, enough: bool
) -> str | None:
    if ending.cause == "time":
        return None if enough else f"{TOO_LONG} {time_limit_s:g} s"
    if ending.cause == "memory":
        what = "the process was killed" if ending.killed else "an allocation failed"
        held = "" if peak is None else f", having held {_in_words(peak)}"
        return f"{OUT_OF_MEMORY}: {what}{held}"
    return None


def _in_words(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


# --- In the process -------------------------------------------------------------------------


def _tell_peak(tell: Tell, setting: Setting, memory_limit_bytes: int | None) -> None:
    if setting.device == "cpu":
        give_back_freed_memory()
    known = setting.device == "cuda" or peak_is_known()
    work, baseline = _begin(tell, setting, memory_limit_bytes)
    try:
        # From its second step on, the optimiser holds its state all the time.
        for _ in range(2 if setting.work == "train" else 1):
            work.prepare()
            _reset_peak(setting.device)
            work.run()
    except torch.OutOfMemoryError:  # of a GPU, whose memory is not seen from outside
        tell("peak_before_failure", torch.cuda.max_memory_allocated() - baseline)
        raise
    if known:
        tell("peak", _peak(setting.device) - baseline)


def _tell_seconds(
    tell: Tell,
    setting: Setting,
    rounds: int,
    parts: bool,
    time_limit_s: float,
    memory_limit_bytes: int | None,
) -> None:
    end = time.monotonic() + time_limit_s
    work, _ = _begin(tell, setting, memory_limit_bytes)
    longest = 0.0

    def tell_round(name: str) -> bool:
        """Do a round and tell of it, unless time does not suffice."""
        nonlocal longest
        begin = time.monotonic()
        if begin + _SPARE * longest > end:
            return False
        work.prepare()
        if name == "parts":
            tell(name, measure_parts(work, setting.device))
        else:
            tell(name, _seconds(work, setting.device))
        longest = max(longest, time.monotonic() - begin)
        return True

    tell_round("warm_up")
    if rounds and not tell_round("seconds"):
        return
    # Before further rounds: where time is short, parts say more than they do.
    if parts:
        tell_round("parts")
    for _ in range(rounds - 1):
        if not tell_round("seconds"):
            return


def _seconds(work: Doable, device: str) -> float:
    if work.model is None:
        watch = Stopwatch(device)
        work.run()
        watch.mark()
        return sum(watch.laps()) / work.times
    # A model's user waits for launches too.
    begin = clock(device)
    work.run()
    return (clock(device) - begin) / work.times


def _begin(tell: Tell, setting: Setting, memory_limit_bytes: int | None) -> tuple[Doable, int]:
    """Warm up, tell what is held then, and make the work; returns it and what was held."""
    warm_up = make_work(small(setting))
    warm_up.prepare()
    warm_up.run()
    del warm_up
    gc.collect()
    baseline = _held(setting.device)
    tell("baseline", baseline)
    if memory_limit_bytes is not None:
        limit_memory(memory_limit_bytes, setting.device)
    work = make_work(setting)
    tell("engine", work.engine)
    tell("decoder", work.decoder)
    return work, baseline


def _held(device: str) -> int:
    """What is held now, from which on its peak begins anew; 0 if the system does not tell."""
    if device == "cuda":
        _reset_peak(device)
        return torch.cuda.memory_allocated()
    if not peak_is_known():
        return 0
    return resident_bytes()


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    elif peak_is_known():
        reset_peak()


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()
