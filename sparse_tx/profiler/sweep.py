"""From a question to a profile: what is calibrated, predicted, measured, and left out."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from sparse_tx.attention import resolve_engine
from sparse_tx.profiler.calibration import (
    TimeModel,
    calibrate,
    calibration_lengths,
    seconds_at_rate,
)
from sparse_tx.profiler.log import MeasurementLog
from sparse_tx.profiler.machine import measure_ceilings
from sparse_tx.profiler.measure import OUT_OF_MEMORY, WANTS, Want, measure
from sparse_tx.profiler.memory import free_bytes
from sparse_tx.profiler.patterns_by_length import at_length
from sparse_tx.profiler.predict import predict, predict_peak
from sparse_tx.profiler.provenance import provenance
from sparse_tx.profiler.records import Ceilings, Measurement, Prediction, Profile, Row, Setting
from sparse_tx.profiler.scaling import crossovers, power_laws

# Of the memory that is free, what a measurement may take.
_SHARE_OF_FREE = 0.95
# Of the measurements that everything else is predicted from.
_CALIBRATION_ROUNDS = 5
# How often a process does the work at least: the peak of training is that of a second step.
_RUNS = {"train": 2}
# What a process may take longer than predicted before its measurement is not even begun.
_SPARE = 1.2


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be found out.

    Attributes:
        title: of the profile.
        settings: what costs are asked for, in the order of the report.
        measured: whether each of them is measured, as far as time and memory allow.
        flops_per_s: the rate that times are predicted at; None to calibrate by short measurements.
        rounds: that are timed of each measurement.
        limit_s: seconds that one process of a measurement may take.
        training_tokens: of a training run whose total cost is wanted.
    """

    title: str
    settings: tuple[Setting, ...]
    measured: bool = False
    flops_per_s: float | None = None
    rounds: int = 3
    limit_s: float = 60.0
    training_tokens: int | None = None


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
            room = int(_SHARE_OF_FREE * free_bytes(setting.device))
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
        free = int(_SHARE_OF_FREE * free_bytes(setting.device))
        if prediction.peak_bytes > free:
            return (
                f"would take {prediction.peak_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
            )
        seconds = prediction.seconds or 0.0
        if _SPARE * _RUNS.get(setting.work, 1) * seconds > self.limit_s:
            return f"would take about {seconds:,.0f} s, beyond the limit of {self.limit_s:g} s"
        return ""


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


def answer(question: Question, laboratory: Laboratory) -> Profile:
    """Find out what is asked.

    Raises:
        UserError: a setting cannot run on this machine, or its memory is not known.
    """
    ceilings = None
    if question.measured or question.flops_per_s is None:
        ceilings = ceilings_of(question.settings[0])
    if question.flops_per_s is None:
        forecast = calibrated(question.settings, laboratory, ceilings)
        rows = [
            Row(setting=setting, prediction=predict(setting, engine_of(setting), seconds=seconds))
            for setting in question.settings
            for seconds in [forecast.seconds(setting)]
        ]
    else:
        rows = [_at_rate(setting, question.flops_per_s) for setting in question.settings]
    if question.measured:
        rows = _measured(rows, laboratory)
    laws = power_laws(rows)
    return Profile(
        title=question.title,
        provenance=provenance(),
        rows=tuple(rows),
        ceilings=ceilings,
        laws=laws,
        crossovers=crossovers(rows, laws),
        training_tokens=question.training_tokens,
    )


def at(setting: Setting, T: int, batch: int | None = None) -> Setting:
    """The setting at another length, where the sizes of its pattern may be others, or batch size.

    Raises:
        UserError: the pattern or the model cannot have this length.
    """
    model = replace(setting.model, seq_len=T, pattern=at_length(setting.label, T))
    training = setting.training
    if batch is not None:
        training = replace(training, batch_size=batch)
    return replace(setting, model=model, training=training)


def engine_of(setting: Setting) -> str:
    """The attention engine that will run.

    Raises:
        UserError: the one that the setting names cannot run.
    """
    model, H = setting.model, setting.model.n_head
    bf16 = setting.training.precision == "bf16"
    name, _ = resolve_engine(
        model.engine,
        device=torch.device(setting.device),
        dtype=torch.bfloat16 if bf16 else torch.float32,
        D=model.qk_width // H,
        D_v=model.n_embd // H,
        heads=tuple(head for layer in model.stack.layers for head in layer.heads(H)),
    )
    return name


def calibrated(settings: Iterable[Setting], laboratory: Laboratory, ceilings: Ceilings) -> Forecast:
    """Measure each kind of setting at two small lengths, and fit their times."""
    longest: dict[Setting, int] = {}
    for setting in settings:
        kind = replace(setting, model=replace(setting.model, seq_len=1, pattern="dense"))
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
    bf16 = setting.training.precision == "bf16"
    return measure_ceilings(setting.device, torch.bfloat16 if bf16 else torch.float32)


def _at_rate(setting: Setting, flops_per_s: float) -> Row:
    prediction = predict(setting, engine_of(setting))
    seconds = seconds_at_rate(prediction.useful_flops, flops_per_s)
    return Row(setting=setting, prediction=replace(prediction, seconds=seconds))


def _measured(rows: list[Row], laboratory: Laboratory) -> list[Row]:
    """Measure what can be, the shortest first, so that an interrupted sweep has the most."""
    reasons = [laboratory.why_not(row.setting, row.prediction) for row in rows]
    order = [n for n, reason in enumerate(reasons) if not reason]
    order.sort(key=lambda n: rows[n].prediction.seconds or rows[n].setting.model.seq_len)
    laboratory.watcher.on_plan("measuring", len(order))
    done = [replace(row, not_measured=why) for row, why in zip(rows, reasons, strict=True)]
    for n in order:
        done[n] = replace(rows[n], measurement=laboratory.measure(rows[n].setting))
    return done
