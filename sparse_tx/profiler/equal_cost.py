"""How long a sequence a pattern reaches at the cost that dense attention has at some length.

The cost is that of one layer's attention, forward and backward: FLOPs, peak memory and time. Memory
is set against both ways of computing dense attention: *fused*, which keeps no weights and takes
memory in proportion to the length, and by the textbook (the engine ``reference``), which keeps a
square of weights for every head.
"""

from collections.abc import Iterable
from dataclasses import replace
from statistics import median

from sparse_tx.patterns.algebra import LARGEST
from sparse_tx.profiler.laboratory import Laboratory
from sparse_tx.profiler.predict import predict_peak, work_flops
from sparse_tx.profiler.records import Measurement, Reach, Setting
from sparse_tx.profiler.scaling import reach
from sparse_tx.profiler.settings import at, engine_of

_DENSE = "dense"
# Lengths that are timed on the way to the longest one within dense attention's time.
_TRIALS = 7


def find_reaches(
    settings: Iterable[Setting], dense_len: int, laboratory: Laboratory, *, measured: bool
) -> tuple[Reach, ...]:
    """Find the length that each pattern reaches at the cost of dense attention at ``dense_len``.

    Args:
        settings: of the work ``attention``, one for each pattern, whatever its length.
        dense_len: in tokens.
        laboratory: measures.
        measured: whether memory and time are measured too; FLOPs are counted.

    Raises:
        UserError: a pattern cannot have some length.
    """
    settings = [setting for setting in settings if setting.label != _DENSE]
    dense = at(replace(settings[0], label=_DENSE), dense_len) if settings else None
    found = []
    laboratory.watcher.on_plan("equal cost", len(settings) * (4 + _TRIALS) if measured else 0)
    for setting in settings:
        found.append(_by_flops(setting, dense))
        if measured:
            found += _by_memory(setting, dense, laboratory)
            found += _by_time(setting, dense, found[0].length, laboratory)
    return tuple(found)


def _by_flops(setting: Setting, dense: Setting) -> Reach:
    budget = work_flops(dense)
    length = reach(lambda T: work_flops(at(setting, T)), budget)
    return _reach(setting, dense, "useful_flops", budget, length, "counted", measured=False)


def _by_memory(setting: Setting, dense: Setting, laboratory: Laboratory) -> list[Reach]:
    """Against textbook and fused dense attention, each measured, as is what is found."""
    textbook = replace(dense, model=replace(dense.model, engine="reference"))
    engine, found = engine_of(setting), []
    for other, words in ((textbook, "textbook dense, T x T weights"), (dense, "fused dense")):
        budget = laboratory.measure(other, ("peak",)).peak_bytes
        length = reach(lambda T: predict_peak(at(setting, T), engine).total, budget)
        held = laboratory.measure(at(setting, max(1, length)), ("peak",))
        how = f"against {words}; {_held(held)} measured at this length"
        found.append(_reach(setting, dense, "peak_bytes", budget, length, how, measured=True))
    return found


def _held(measurement: Measurement) -> str:
    return f"{(measurement.peak_bytes or 0) / 1e6:,.0f} MB"


def _by_time(setting: Setting, dense: Setting, first: int, laboratory: Laboratory) -> list[Reach]:
    """Halve the logarithm between a length within the budget and one beyond it."""
    timed = laboratory.measure(dense, ("seconds",))
    if not timed.seconds:
        return []
    budget = median(timed.seconds)
    within, beyond = 0, LARGEST + 1
    trial = max(1, first)
    for _ in range(_TRIALS):
        seconds = laboratory.measure(at(setting, trial), ("seconds",)).seconds
        if seconds and median(seconds) <= budget:
            within = trial
        else:
            beyond = trial
        if beyond > LARGEST:
            trial = min(LARGEST, 2 * within)
        else:
            trial = round((within * beyond) ** 0.5) if within else max(1, beyond // 2)
        if trial in (within, beyond):
            break
    how = "against fused dense; medians"
    return [_reach(setting, dense, "seconds", budget, within, how, measured=True)]


def _reach(
    setting: Setting,
    dense: Setting,
    quantity: str,
    budget: float,
    length: int,
    how: str,
    *,
    measured: bool,
) -> Reach:
    return Reach(
        label=setting.label,
        quantity=quantity,
        dense_len=dense.model.seq_len,
        budget=budget,
        length=length,
        how=how,
        measured=measured,
    )
