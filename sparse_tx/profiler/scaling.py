"""How cost grows with length: power laws, crossovers with dense attention, and reach."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import ceil, exp, inf, isfinite, log, sqrt
from statistics import median
from typing import NamedTuple

import numpy as np

from sparse_tx.errors import UserError
from sparse_tx.patterns.algebra import LARGEST
from sparse_tx.profiler.records import Crossover, PowerLaw, Row, Work
from sparse_tx.profiler.search import largest_within

QUANTITIES = ("useful_flops", "peak_bytes", "seconds")
_DENSE = "dense"

# Shorter sequences are left out of fits: there, weights, optimisers and calls decide the cost.
_LONG = 4096
_FEWEST = 3  # with fewer points there is no residual to judge a line by
_CONFIDENCE = 0.95
# Slopes nearer to each other than this are not told apart: where they would cross is noise.
_EQUAL_SLOPES = 0.05


class _Curve(NamedTuple):
    """Of what there is one law: a pattern in one kind of work."""

    label: str
    work: Work
    recompute: bool


def fit_power_law(
    lengths: Sequence[float], values: Sequence[float]
) -> tuple[float, float, float, float]:
    """Fit ``value = coefficient * length ** exponent`` by least squares on logarithms.

    Args:
        lengths: at least two different ones, above 0.
        values: what was found at each of them, above 0, in any unit.

    Returns:
        The exponent; the low and high end of its 95 % confidence interval, by Student's t with two
        degrees of freedom fewer than points; and the coefficient, in the unit of ``values``. Two
        points say nothing about how well a line fits, so that their interval is -inf to inf.

    Raises:
        UserError: fewer than two different lengths, or a number that is not above 0.
    """
    from scipy.special import stdtrit  # quantiles of Student's t

    if len(lengths) != len(values):
        raise ValueError(f"{len(lengths)} lengths and {len(values)} values")
    for name, numbers in (("length", lengths), ("value", values)):
        for number in numbers:
            if not (isfinite(number) and number > 0):
                raise UserError(f"a {name} of {number} is on no power law; it must be above 0")
    if len(set(lengths)) < 2:
        raise UserError(
            f"{len(set(lengths))} length says nothing of growth; give 2 different ones or more"
        )
    x, y = np.log(lengths), np.log(values)
    from_mean = x - x.mean()
    slope = from_mean @ y / (from_mean @ from_mean)
    intercept = y.mean() - slope * x.mean()
    freedom, margin = len(x) - 2, inf
    if freedom:
        residuals = y - intercept - slope * x
        error = sqrt(residuals @ residuals / freedom / (from_mean @ from_mean))
        margin = error * stdtrit(freedom, (1 + _CONFIDENCE) / 2)
    return tuple(map(float, (slope, slope - margin, slope + margin, np.exp(intercept))))


def power_laws(rows: Iterable[Row]) -> tuple[PowerLaw, ...]:
    """Fit a power law to every quantity of every pattern, kind of work and use of recompute.

    A law takes the lengths from 4,096 on, or the three longest where those are fewer than three:
    at short lengths, costs that do not grow bend the line. Predicted values have a law from two
    lengths on, measured ones from three. Measured seconds are medians. Measurements that failed
    are left out.

    Returns:
        The laws in the order of the rows; of each quantity the predicted one, then the measured.
    """
    laws = []
    for curve, own_rows in _by_curve(rows).items():
        for quantity in QUANTITIES:
            for measured in (False, True):
                values = _values(own_rows, quantity, measured)
                lengths = _lengths_of_fit(values)
                if len(lengths) < (_FEWEST if measured else 2):
                    continue
                exponent, low, high, coefficient = fit_power_law(
                    lengths, [values[T] for T in lengths]
                )
                laws.append(
                    PowerLaw(
                        **curve._asdict(),
                        quantity=quantity,
                        exponent=exponent,
                        low=low,
                        high=high,
                        coefficient=coefficient,
                        lengths=lengths,
                        measured=measured,
                    )
                )
    return tuple(laws)


def crossovers(rows: Iterable[Row], laws: Iterable[PowerLaw]) -> tuple[Crossover, ...]:
    """Find from which length on each pattern costs less than dense attention, in each quantity.

    Looks at the lengths that have both patterns: measured ones if there are any, else predicted
    ones. From the last length at which the pattern does not cost less, the crossing is taken on a
    straight line in logarithms to the next length, or, beyond the longest, along the slopes of the
    two fits. Slopes that differ by less than 0.05 are taken for equal, and no crossing is looked
    for beyond 2^31 tokens.

    Args:
        rows: of all patterns, dense among them.
        laws: as ``power_laws`` gives them for the same rows.

    Returns:
        One for each pattern but dense, kind of work, use of recompute and quantity for which both
        have values at a common length.
    """
    by_curve, laws, found = _by_curve(rows), tuple(laws), []
    for curve, own_rows in by_curve.items():
        dense = curve._replace(label=_DENSE)
        if curve == dense or dense not in by_curve:
            continue
        for quantity in QUANTITIES:
            for measured in (True, False):
                ratios = _ratios(
                    _values(own_rows, quantity, measured),
                    _values(by_curve[dense], quantity, measured),
                )
                if ratios:
                    break
            else:
                continue
            length, how = _crossing(ratios, _slope_of_ratio(laws, curve, dense, quantity))
            if how == "between":
                counted = "counted" if quantity == "useful_flops" else "predicted"
                how = "measured" if measured else counted
            found.append(Crossover(**curve._asdict(), quantity=quantity, length=length, how=how))
    return tuple(found)


def reach(cost_of: Callable[[int], float], budget: float, *, most: int = LARGEST) -> int:
    """Find the longest sequence that costs no more than ``budget``; 0 if one token costs more.

    Args:
        cost_of: the cost of a length in tokens, such as a count of pairs or FLOPs. It may dip a
            little, as that of patterns as wide as the root of the length does: see
            ``largest_within``.
        budget: what it may cost, such as dense attention at a shorter length, in the same unit.
        most: the longest length that counts, in tokens.
    """
    return largest_within(cost_of, budget, most=most)


def _by_curve(rows: Iterable[Row]) -> dict[_Curve, list[Row]]:
    curves: dict[_Curve, list[Row]] = {}
    for row in rows:
        setting = row.setting
        curve = _Curve(setting.label, setting.work, setting.model.recompute)
        curves.setdefault(curve, []).append(row)
    return curves


def _values(rows: Iterable[Row], quantity: str, measured: bool) -> dict[int, float]:
    """What is known of a quantity by length, ascending; values of 0 have no logarithm."""
    value_of = _measured if measured else _predicted
    values = {row.setting.model.seq_len: value_of(row, quantity) for row in rows}
    return {T: value for T, value in sorted(values.items()) if value}


def _predicted(row: Row, quantity: str) -> float | None:
    if quantity == "useful_flops":
        return sum(row.prediction.useful_flops.values())
    return getattr(row.prediction, quantity)


def _measured(row: Row, quantity: str) -> float | None:
    found = row.measurement
    if found is None or found.failure is not None or quantity == "useful_flops":
        return None
    if quantity == "seconds":
        return median(found.seconds) if found.seconds else None
    return found.peak_bytes


def _lengths_of_fit(lengths: Iterable[int]) -> tuple[int, ...]:
    """Of ascending lengths, those that a power law is fitted to."""
    lengths = tuple(lengths)
    long = tuple(T for T in lengths if T >= _LONG)
    return long if len(long) >= _FEWEST else lengths[-_FEWEST:]


def _ratios(values: dict[int, float], dense: dict[int, float]) -> dict[int, float]:
    """Logarithms of a pattern's cost over that of dense, at the lengths that have both."""
    return {T: log(values[T] / dense[T]) for T in values if T in dense}


def _slope_of_ratio(
    laws: tuple[PowerLaw, ...], curve: _Curve, dense: _Curve, quantity: str
) -> float:
    """By how much the pattern's exponent exceeds dense's: measured, else predicted, else 0."""
    for measured in (True, False):
        exponents = {
            _Curve(law.label, law.work, law.recompute): law.exponent
            for law in laws
            if law.quantity == quantity and law.measured == measured
        }
        if curve in exponents and dense in exponents:
            return exponents[curve] - exponents[dense]
    return 0.0


def _crossing(ratios: dict[int, float], slope: float) -> tuple[int | None, str]:
    """From which length on the logarithm of the ratio is below 0, and how that is known."""
    points = tuple(ratios.items())
    if points[-1][1] >= 0:
        length, ratio = points[-1]
        if slope > -_EQUAL_SLOPES:
            return None, "never"
        logarithm = log(length) - ratio / slope
        if logarithm >= log(LARGEST):
            return None, "never"
        return max(length + 1, _whole(logarithm)), "extrapolated"
    for (length, ratio), (next_length, next_ratio) in reversed(tuple(pairwise(points))):
        if ratio >= 0:
            share = ratio / (ratio - next_ratio)
            crossing = _whole(log(length) + share * log(next_length / length))
            between = min(next_length, max(length + 1, crossing))
            return between, "between"
    return points[0][0], "below"


def _whole(logarithm: float) -> int:
    """The first whole number from a crossing on, which is known up to rounding."""
    return ceil(exp(logarithm) * (1 - 1e-9))
