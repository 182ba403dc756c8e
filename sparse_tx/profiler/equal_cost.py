"""How long a sequence a pattern reaches at the cost that dense attention has at some length.

The cost is that of one layer's attention, forward and backward: FLOPs, the attention weights if
they were stored, peak memory and time. Memory is what attention holds beside its inputs, and it is
set against both ways of computing dense attention: by the textbook (the engine ``reference``),
which holds squares of weights for every head, and *fused*, which stores no weights and takes memory
in proportion to the length, as all other engines do for all patterns.
"""

from collections.abc import Iterable
from dataclasses import replace
from math import inf
from statistics import median

from sparse_tx.accounting import INPUTS, attention_peak
from sparse_tx.patterns.algebra import LARGEST
from sparse_tx.profiler.laboratory import Laboratory
from sparse_tx.profiler.predict import bytes_within, pairs_of_work, work_flops
from sparse_tx.profiler.records import Measurement, Reach, Setting
from sparse_tx.profiler.scaling import reach
from sparse_tx.profiler.settings import at, can_be_at, engine_of

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
    laboratory.watcher.on_plan("equal cost", len(settings) * (5 + _TRIALS) if measured else 0)
    for setting in settings:
        counted = _by_count(setting, dense)
        found += counted
        if measured:
            found += _by_memory(setting, dense, laboratory)
            found.append(_by_time(setting, dense, counted[0].length, laboratory))
    return tuple(found)


def _by_count(setting: Setting, dense: Setting) -> list[Reach]:
    """By FLOPs, and by the bytes of the weights in float32."""
    found = []
    for quantity, count in (("useful_flops", work_flops), ("weights_bytes", _weights_bytes)):
        budget = count(dense)

        def cost_of(T: int, count=count) -> float:
            return count(at(setting, T)) if can_be_at(setting, T) else inf

        length = reach(cost_of, budget)
        found.append(_reach(setting, dense, quantity, budget, length, "counted", measured=False))
    return found


def _weights_bytes(setting: Setting) -> int:
    return 4 * setting.training.batch_size * pairs_of_work(setting)


def _by_memory(setting: Setting, dense: Setting, laboratory: Laboratory) -> list[Reach]:
    """Against textbook and fused dense attention, each measured, as is what is found."""
    precision = setting.training.precision
    if precision != "fp32":
        how = f"predicted memory is that of fp32, and {precision} was asked for"
        return [_reach(setting, dense, "peak_bytes", None, None, how, measured=False)]
    textbook = replace(dense, model=replace(dense.model, engine="reference"))
    engine, found = engine_of(setting), []
    for other, words in ((textbook, "textbook dense, T x T weights"), (dense, "fused dense")):
        of_dense = laboratory.measure(other, ("peak",))
        if of_dense.failure or of_dense.peak_bytes is None:
            found.append(_unknown(setting, dense, "peak_bytes", words, of_dense))
            continue
        budget = of_dense.peak_bytes - _input_bytes(other)
        length = _longest_within(setting, engine, budget)
        longest = at(setting, max(1, length))
        own = laboratory.measure(longest, ("peak",))
        measured = own.failure is None and own.peak_bytes is not None
        seen = f"not measured ({_why(own)})"
        if measured:
            seen = f"{(own.peak_bytes - _input_bytes(longest)) / 1e6:,.0f} MB measured"
        how = f"against {words}; by prediction, {seen} at this length"
        found.append(_reach(setting, dense, "peak_bytes", budget, length, how, measured=measured))
    return found


def _longest_within(setting: Setting, engine: str, budget: int) -> int:
    def beside_inputs(T: int) -> float:
        if not can_be_at(setting, T):
            return inf
        here = at(setting, T)
        inputs = _input_bytes(here)
        return bytes_within(here, engine, budget + inputs) - inputs

    return reach(beside_inputs, budget)


def _input_bytes(setting: Setting) -> int:
    """Queries, keys, values and the gradient of the output."""
    return attention_peak(setting.model, batch=setting.training.batch_size).parts[INPUTS]


def _by_time(setting: Setting, dense: Setting, first: int, laboratory: Laboratory) -> Reach:
    """Halve the logarithm between a length within the budget and one beyond it."""
    timed = laboratory.measure(dense, ("seconds",))
    if timed.failure or not timed.seconds:
        return _unknown(setting, dense, "seconds", "fused dense", timed)
    budget = median(timed.seconds)
    within, beyond, why = 0, LARGEST + 1, ""
    trial = max(1, first)
    for _ in range(_TRIALS):
        reason = _why_not_within(setting, trial, budget, laboratory)
        if reason is None:
            within = trial
        else:
            beyond, why = trial, reason
        if beyond > LARGEST:
            trial = min(LARGEST, 2 * within)
        else:
            trial = round((within * beyond) ** 0.5) if within else max(1, beyond // 2)
        if trial in (within, beyond):
            break
    how = "against fused dense; medians" + (f"; {beyond:,} tokens: {why}" if why else "")
    return _reach(setting, dense, "seconds", budget, within, how, measured=True)


def _why_not_within(setting: Setting, T: int, budget: float, laboratory: Laboratory) -> str | None:
    """Why a length does not do in so many seconds; None if it does."""
    if not can_be_at(setting, T):
        return "the pattern cannot have this length"
    found = laboratory.measure(at(setting, T), ("seconds",))
    if found.failure or not found.seconds:
        return _why(found)
    return None if median(found.seconds) <= budget else "took longer"


def _unknown(
    setting: Setting, dense: Setting, quantity: str, words: str, measurement: Measurement
) -> Reach:
    how = f"{words} was not measured: {_why(measurement)}"
    return _reach(setting, dense, quantity, None, None, how, measured=False)


def _why(measurement: Measurement) -> str:
    """Why a measurement has no value."""
    return measurement.failure or "this system does not tell it"


def _reach(
    setting: Setting,
    dense: Setting,
    quantity: str,
    budget: float | None,
    length: int | None,
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
