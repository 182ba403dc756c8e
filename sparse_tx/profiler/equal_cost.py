"""How long a sequence a pattern reaches at the cost that dense attention has at some length.

The cost is that of one layer's attention, forward and backward: FLOPs, the attention weights if
they were stored, peak memory and time. Memory is what attention holds beside its inputs, and it is
set against both ways of computing dense attention: by the textbook (the engine ``reference``),
which holds squares of weights for every head, and *fused*, which stores no weights and takes memory
in proportion to the length, as all other engines do for all patterns.
"""

from collections.abc import Iterable
from dataclasses import replace
from statistics import median

from sparse_tx.accounting import attended_pairs
from sparse_tx.patterns.algebra import LARGEST
from sparse_tx.profiler.predict import counted_model, predict_peak, work_flops
from sparse_tx.profiler.records import Reach, Setting
from sparse_tx.profiler.scaling import reach
from sparse_tx.profiler.sweep import Laboratory, at, engine_of

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
        counted = _by_count(setting, dense)
        found += counted
        if measured:
            found += _by_memory(setting, dense, laboratory)
            found += _by_time(setting, dense, counted[0].length, laboratory)
    return tuple(found)


def _by_count(setting: Setting, dense: Setting) -> list[Reach]:
    """By FLOPs, and by the bytes of the weights in float32."""
    found = []
    for quantity, count in (("useful_flops", work_flops), ("weights_bytes", _weights_bytes)):
        budget = count(dense)
        length = reach(lambda T, count=count: count(at(setting, T)), budget)
        found.append(_reach(setting, dense, quantity, budget, length, "counted", measured=False))
    return found


def _weights_bytes(setting: Setting) -> int:
    pairs = attended_pairs(counted_model(setting)).total // len(setting.model.stack.layers)
    return 4 * setting.training.batch_size * pairs


def _by_memory(setting: Setting, dense: Setting, laboratory: Laboratory) -> list[Reach]:
    """Against textbook and fused dense attention, each measured, as is what is found."""
    textbook = replace(dense, model=replace(dense.model, engine="reference"))
    engine, found = engine_of(setting), []
    for other, words in ((textbook, "textbook dense, T x T weights"), (dense, "fused dense")):
        budget = _beside_inputs(other, laboratory.measure(other, ("peak",)).peak_bytes or 0)
        length = reach(lambda T: _beside_inputs(at(setting, T), _peak(setting, T, engine)), budget)
        longest = at(setting, max(1, length))
        held = laboratory.measure(longest, ("peak",)).peak_bytes or 0
        how = f"against {words}; {_beside_inputs(longest, held) / 1e6:,.0f} MB measured here"
        found.append(_reach(setting, dense, "peak_bytes", budget, length, how, measured=True))
    return found


def _peak(setting: Setting, T: int, engine: str) -> int:
    return predict_peak(at(setting, T), engine).total


def _beside_inputs(setting: Setting, peak_bytes: int) -> int:
    """What is left of a peak of attention without q, k, v and the gradient of the output."""
    model = setting.model
    width = 2 * model.qk_width + 2 * model.n_embd
    if model.qk_norm or model.position == "rope":
        width += 2 * model.qk_width  # the projection that norms or rotations started from
    return peak_bytes - 4 * width * setting.training.batch_size * model.seq_len


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
