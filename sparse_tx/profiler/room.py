"""What memory has room for: the longest sequence and the largest batch, confirmed by running it."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf
from typing import Literal

from sparse_tx.errors import UserError
from sparse_tx.patterns.algebra import LARGEST
from sparse_tx.profiler.forecast import Forecast, calibrated, ceilings_of
from sparse_tx.profiler.laboratory import Laboratory
from sparse_tx.profiler.predict import bytes_within, predict, predict_peak
from sparse_tx.profiler.records import Fit, Setting
from sparse_tx.profiler.search import largest_within
from sparse_tx.profiler.settings import at, can_be_at, engine_of

# Beyond this, a batch is no longer a matter of memory.
_MOST_SEQUENCES = 1 << 20
_SHORT = 256
# Of the room, what is left free: measured peaks were up to 2 % above predicted ones.
HEADROOM = 0.03


def find_fits(
    settings: Iterable[Setting], memory_bytes: int, laboratory: Laboratory
) -> tuple[Fit, ...]:
    """Find what fits into memory, by accounting, and run it once where time allows.

    For each setting the longest sequence at its batch size, and for training the largest batch at
    its length too. The process itself counts: what it holds before it makes a model is measured.
    3 % of the rest are left free, as predictions are not exact.

    Args:
        settings: what is to fit; their lengths are those of which the largest batch is sought.
        memory_bytes: the room for the whole process.
        laboratory: measures, and runs what was found as far as machine and limit of time allow.

    Raises:
        UserError: the process alone takes more or could not be measured, or a setting cannot run
            here.
    """
    settings = tuple(settings)
    smallest = at(settings[0], min(_SHORT, settings[0].model.seq_len), batch=1)
    laboratory.watcher.on_plan("measuring an empty process", 1)
    empty = laboratory.measure(smallest, ("peak",))
    if empty.failure and not empty.baseline_bytes:
        raise UserError(
            "--memory counts what a process holds before it has a model, and that could not be"
            f" measured: {empty.failure}; raise --limit_s, or free memory"
        )
    baseline = empty.baseline_bytes
    if memory_bytes <= baseline:
        raise UserError(
            f"--memory is {memory_bytes / 1e9:.3g} GB, and a process with torch takes"
            f" {baseline / 1e9:.3g} GB before it has a model; give more"
        )
    found = []
    for setting in settings:
        found.append(_longest(setting, memory_bytes, baseline))
        if setting.work == "train":
            found.append(_widest(setting, memory_bytes, baseline))
    fitting = [_one_sequence(fit.setting) for fit in found if fit.value]
    forecast = calibrated(fitting, laboratory, ceilings_of(settings[0]))
    laboratory.watcher.on_plan("confirming", len(found))
    return tuple(_confirmed(fit, forecast, laboratory) for fit in found)


def _room(memory: int, baseline: int) -> int:
    """What predicted peaks may take, so that measured ones stay within the memory."""
    return int((1 - HEADROOM) * (memory - baseline))


def _longest(setting: Setting, memory: int, baseline: int) -> Fit:
    most = setting.model.most_positions or LARGEST

    def sized(T: int) -> Setting | None:
        # At some lengths, sizes that follow the length come to no pattern.
        return at(setting, T) if T == 1 or can_be_at(setting, T) else None

    return _largest("seq_len", sized, most, memory, baseline)


def _widest(setting: Setting, memory: int, baseline: int) -> Fit:
    T = setting.model.seq_len
    return _largest("batch_size", lambda n: at(setting, T, n), _MOST_SEQUENCES, memory, baseline)


def _largest(
    what: Literal["seq_len", "batch_size"],
    sized: Callable[[int], Setting | None],
    most: int,
    memory: int,
    baseline: int,
) -> Fit:
    """The largest length or batch, of those that ``sized`` makes settings of, with room for it."""
    engine, room = engine_of(sized(1)), _room(memory, baseline)

    def bytes_of(n: int) -> float:
        setting = sized(n)
        return inf if setting is None else bytes_within(setting, engine, room)

    value = largest_within(bytes_of, room, most=most)
    found = sized(max(1, value))
    return Fit(
        setting=found,
        memory_bytes=memory,
        baseline_bytes=baseline,
        largest=what,
        value=value,
        peak_bytes=baseline + predict_peak(found, engine).total,
    )


def _one_sequence(setting: Setting) -> Setting:
    """The setting with a batch of one, whose time tells that of larger ones well enough."""
    return at(setting, setting.model.seq_len, batch=1)


def _confirmed(fit: Fit, forecast: Forecast, laboratory: Laboratory) -> Fit:
    setting = fit.setting
    if not fit.value:
        return replace(fit, not_confirmed="nothing fits")
    seconds = forecast.seconds(_one_sequence(setting))
    if seconds is not None:
        seconds *= setting.training.batch_size
    prediction = predict(setting, engine_of(setting), seconds=seconds)
    if reason := laboratory.why_not(setting, prediction):
        return replace(fit, not_confirmed=reason)
    measurement = laboratory.measure(setting, ("peak",))
    return replace(fit, confirmation=measurement)
