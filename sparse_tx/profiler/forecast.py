"""Times of settings, from short measurements and from what memory fresh from the system costs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sparse_tx.model.precision import dtype_of
from sparse_tx.profiler.calibration import TimeModel, calibrate, calibration_lengths
from sparse_tx.profiler.laboratory import Laboratory
from sparse_tx.profiler.machine import measure_ceilings
from sparse_tx.profiler.predict import predict_peak
from sparse_tx.profiler.records import Ceilings, Setting
from sparse_tx.profiler.settings import at, engine_of, without_length

# Of the measurements that everything else is predicted from.
_CALIBRATION_ROUNDS = 5


@dataclass(frozen=True)
class Forecast:
    """Times of settings, from what short measurements of the same kinds have shown.

    Attributes:
        times: what grows with tokens and pairs.
        fresh_bytes_per_s: how fast the system hands over memory, which is asked for anew, for each
            large tensor, at lengths that short measurements know nothing of.
    """

    times: TimeModel
    fresh_bytes_per_s: float

    def seconds(self, setting: Setting) -> float | None:
        """The time of the work once; None if nothing like it was measured."""
        known = self.times.seconds(setting)
        return None if known is None else known + self.seconds_of_faults(setting)

    def seconds_of_faults(self, setting: Setting) -> float:
        """The time that goes into memory fresh from the system."""
        fresh = predict_peak(setting, engine_of(setting)).fresh_bytes
        return fresh / self.fresh_bytes_per_s


def calibrated(settings: Iterable[Setting], laboratory: Laboratory, ceilings: Ceilings) -> Forecast:
    """Measure each kind of setting at two small lengths, and fit their times."""
    longest: dict[Setting, int] = {}
    for setting in settings:
        kind = without_length(setting)
        longest[kind] = max(longest.get(kind, 1), setting.model.seq_len)
    points = [
        at(kind, T)
        for kind, most in longest.items()
        for T in dict.fromkeys(calibration_lengths(at(kind, most), most))
    ]
    laboratory.watcher.on_plan("calibrating", len(points))
    faults = Forecast(TimeModel({}), ceilings.fresh_bytes_per_s)
    measured = []
    for point in points:
        rounds = max(laboratory.rounds, _CALIBRATION_ROUNDS)
        found = laboratory.measure(point, ("seconds", "parts"), rounds=rounds)
        # However slow the system was just now, most of the time is the work's own.
        extra = faults.seconds_of_faults(point)
        own = tuple(max(seconds - extra, seconds / 2) for seconds in found.seconds)
        measured.append((point, replace(found, seconds=own)))
    return replace(faults, times=calibrate(measured))


def ceilings_of(setting: Setting) -> Ceilings:
    """What the machine does at best where and in the type that the setting computes in."""
    return measure_ceilings(setting.device, dtype_of(setting.training.precision))
