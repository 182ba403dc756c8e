"""From a question to a profile: what is calibrated, predicted, measured, and left out."""

from dataclasses import dataclass, replace

from sparse_tx.profiler.calibration import seconds_at_rate
from sparse_tx.profiler.forecast import calibrated, ceilings_of
from sparse_tx.profiler.laboratory import Laboratory
from sparse_tx.profiler.predict import predict
from sparse_tx.profiler.provenance import provenance
from sparse_tx.profiler.records import Profile, Row, Setting
from sparse_tx.profiler.scaling import crossovers, power_laws
from sparse_tx.profiler.settings import engine_of


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be found out.

    Attributes:
        title: of the profile.
        settings: what costs are asked for, in the order of the report.
        measured: whether each of them is measured, as far as time and memory allow.
        flops_per_s: the rate that times are predicted at; None to calibrate by short measurements.
        training_tokens: of a training run whose total cost is wanted.
    """

    title: str
    settings: tuple[Setting, ...]
    measured: bool = False
    flops_per_s: float | None = None
    training_tokens: int | None = None


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
