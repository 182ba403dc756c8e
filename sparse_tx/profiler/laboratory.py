"""Where settings are measured: each once, as far as memory and time allow, seen by a watcher."""

from contextlib import suppress

from sparse_tx.profiler.log import MeasurementLog
from sparse_tx.profiler.measure import OUT_OF_MEMORY, WANTS, Want, measure
from sparse_tx.profiler.memory import free_bytes
from sparse_tx.profiler.records import Measurement, Prediction, Setting

# Of the memory that is free, what a measurement may take.
_SHARE_OF_FREE = 0.95
# How often a process does the work at least: the peak of training is that of a second step.
_RUNS = {"train": 2}
# What a process may take longer than predicted before its measurement is not even begun.
_SPARE = 1.2


class Watcher:
    """Whoever shows the progress of a sweep to a person; this one shows nothing."""

    def on_plan(self, what: str, n_points: int) -> None:
        """A stretch of ``n_points`` measurements begins."""

    def on_point(self, setting: Setting) -> None:
        """A measurement of the stretch begins."""

    def on_done(self, setting: Setting, measurement: Measurement) -> None:
        """It has ended."""


class Laboratory:
    """Measures settings, each once: what the log knows is not measured again.

    Args:
        log: where measurements are kept; None to keep them in memory alone.
        watcher: who shows the progress.
        rounds: that are timed of each measurement.
        limit_s: seconds that one process of a measurement may take.
    """

    def __init__(
        self, log: MeasurementLog | None, watcher: Watcher, *, rounds: int, limit_s: float
    ):
        self.log, self.watcher, self.rounds, self.limit_s = log, watcher, rounds, limit_s
        self._known: dict[tuple[Setting, tuple[Want, ...]], Measurement] = {}

    def measure(
        self, setting: Setting, want: tuple[Want, ...] = WANTS, *, rounds: int | None = None
    ) -> Measurement:
        """Measure a setting, or remember what was measured of it."""
        rounds = rounds or self.rounds
        self.watcher.on_point(setting)
        found = self._known.get((setting, want))
        if found is None and self.log is not None:
            found = self.log.find(setting, want, rounds, time_limit_s=self.limit_s)
        if found is None:
            room = _room(setting.device)
            found = measure(
                setting,
                rounds=rounds,
                time_limit_s=self.limit_s,
                memory_limit_bytes=room,
                want=want,
            )
            # What memory had no room for now may have room another time.
            if self.log is not None and not (found.failure or "").startswith(OUT_OF_MEMORY):
                self.log.add(setting, found, want=want, rounds=rounds, time_limit_s=self.limit_s)
        self._known[setting, want] = found
        self.watcher.on_done(setting, found)
        return found

    def why_not(self, setting: Setting, prediction: Prediction) -> str:
        """Why a measurement is not worth beginning, in words; empty if it is."""
        free = _room(setting.device)
        if free is not None and prediction.peak_bytes > free:
            return (
                f"would take {prediction.peak_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            )
        seconds = _SPARE * _RUNS.get(setting.work, 1) * (prediction.seconds or 0.0)
        if seconds > self.limit_s:
            return f"would take up to {seconds:,.0f} s, beyond the limit of {self.limit_s:g} s"
        return ""


def _room(device: str) -> int | None:
    """Bytes that a measurement may take; None where the system does not tell."""
    with suppress(OSError, KeyError):
        return int(_SHARE_OF_FREE * free_bytes(device))
    return None
