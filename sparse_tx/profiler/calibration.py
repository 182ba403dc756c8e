"""Predict the time of long sequences from a few measured short ones.

The model of one setting at length T, where every factor is at least 0:

    attention      u T + w attended pairs
    feed-forward   a + b (its FLOPs, which grow by more than T where it works in pieces) + c excess
    optimiser      a
    all others     a + b T + c excess

A step of decoding is not clocked part by part: it takes a + w keys that its query reads.

The excess is that of T over the shortest measured length, in the feed-forward its share of the
FLOPs: beyond some length, caches and freed memory no longer serve, and a token costs more.

All but attention is the same for every pattern, and is fitted to the measurements of all of them.
Short sequences say little of ``w`` where attention takes a small share of the time, or where pairs
grow no faster than T. Kernels do much the same work for every pair, so ``w`` is held near that of
the pattern which tells most of it, as far as a pattern's own measurements leave it open.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import median
from typing import NamedTuple

import numpy as np

from sparse_tx.accounting import cache_bytes
from sparse_tx.errors import UserError
from sparse_tx.profiler.predict import flops_of_work, pairs_of_work, work_flops
from sparse_tx.profiler.records import Measurement, Setting
from sparse_tx.profiler.settings import at, without_length

_SHORTEST = 1024  # shorter steps are calls and optimiser more than anything that grows
_SPREAD = 4  # between the two lengths of a calibration
# A step of decoding takes no time to speak of, but its cache takes memory, and its text some.
_LARGEST_CACHE, _LONGEST_TEXT = 1 << 30, 1 << 17
# The relative errors that fits assume: of a measurement at the longest length (shorter ones weigh
# less, in proportion, since predictions are for longer ones), of a rate per pair that another
# pattern found, and of one which supposes that attention does nothing but pairs.
_OF_MEASUREMENT, _OF_OTHERS_RATE, _OF_SUPPOSED_RATE = 0.05, 0.3, 0.5
# By how much pairs per query, or FLOPs of a step, must grow between two lengths for others to rely
# on the rate.
_TELLING_GROWTH = 1.5


class _Point(NamedTuple):
    """What one measurement says.

    Seconds are by group of parts, ``does`` is what they may depend on; FLOPs are those of the whole
    work, of which the share is attention's.
    """

    seconds: dict[str, float]
    does: dict[str, float]
    flops: int
    attention_share: float


@dataclass(frozen=True)
class Rates:
    """The time model of settings that differ in their length alone.

    Attributes:
        shortest: the shortest measured length, in tokens.
        by_group: seconds per unit of what the time of each group of parts depends on.
    """

    shortest: int
    by_group: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class TimeModel:
    """Seconds as functions of the length, for the settings that were calibrated.

    Attributes:
        rates: for a setting without its length, what was fitted.
    """

    rates: Mapping[Setting, Rates]

    def seconds(self, setting: Setting) -> float | None:
        """The time of the setting's work once; None if nothing like it was calibrated.

        Like it is what differs in nothing but the length, and in the pattern sizes which follow it.
        """
        rates = self.rates.get(without_length(setting))
        if rates is None:
            return None
        does = _what_it_does(setting, rates.shortest)
        return sum(
            rate * does[on] for group in rates.by_group.values() for on, rate in group.items()
        )


def calibrate(points: Iterable[tuple[Setting, Measurement]]) -> TimeModel:
    """Fit the time model of every setting that is among ``points``, whatever its length.

    A measurement counts with the median of its seconds, shared out to the parts in the proportions
    of ``parts_s``; without parts, the sum of all terms is fitted to it. Measurements that failed or
    have no times are left out, and so are settings that are left with fewer than two lengths.

    Args:
        points: settings and what was measured for them; of each pattern, kind of work and so on,
            best two at the lengths of ``calibration_lengths``.
    """
    timed: dict[Setting, list[tuple[Setting, Measurement]]] = defaultdict(list)
    for setting, measurement in points:
        if measurement.seconds and measurement.failure is None:
            timed[replace(without_length(setting), label="")].append((setting, measurement))
    rates = {}
    for alike in timed.values():
        rates |= _rates_of_patterns(alike)
    return TimeModel(rates)


def calibration_lengths(
    setting: Setting, longest: int, *, seconds: float = 3.0, flops_per_s: float = 6e10
) -> tuple[int, int]:
    """Choose two lengths to calibrate at: as long as time allows, so that attention shows.

    A step of decoding takes some time at any length, and more the more it reads: one length is
    short, and the other as long as cache and text are small enough for.

    Args:
        setting: at any length.
        longest: the longest length that is asked for, in tokens, and the most that is returned.
        seconds: that the work may take at the longer length.
        flops_per_s: useful FLOPs in a second that are counted on; the default is for two CPU cores.

    Returns:
        The shorter and the longer length: the longer one a power of 2 times the shorter, which is
        at least 1,024 tokens unless ``longest`` leaves no room for two; they are equal only where
        ``longest`` is 1.

    Raises:
        UserError: ``longest`` is below 1, or ``seconds`` or the rate not above 0.
    """
    if longest < 1:
        raise UserError(f"the longest length is {longest}; it must be 1 token or more")
    budget = seconds_to_flops(seconds, flops_per_s)
    longer = min(longest, 2 * _SHORTEST)
    while 2 * longer <= longest and _is_affordable(at(setting, 2 * longer), budget):
        longer *= 2
    shorter = _SHORTEST if setting.work == "decode" else max(longer // _SPREAD, _SHORTEST)
    return min(shorter, max(1, longer // 2)), longer


def _is_affordable(setting: Setting, budget: float) -> bool:
    """Whether a work is small enough to calibrate at, with a budget of so many FLOPs."""
    if setting.work != "decode":
        return work_flops(setting) <= budget
    cache = cache_bytes(setting.model, batch=setting.training.batch_size).allocated.total
    return setting.model.seq_len <= _LONGEST_TEXT and cache <= _LARGEST_CACHE


def seconds_to_flops(seconds: float, flops_per_s: float) -> float:
    """The FLOPs that a time has room for at a stated rate; the inverse of ``seconds_at_rate``.

    Raises:
        UserError: the time or the rate is not above 0.
    """
    if not (isfinite(seconds) and seconds > 0):
        raise UserError(f"a time of {seconds} s; it must be above 0")
    return seconds * _checked_rate(flops_per_s)


def seconds_at_rate(useful_flops: Mapping[str, int], flops_per_s: float) -> float:
    """The time of a prediction's FLOPs at a stated rate.

    Args:
        useful_flops: by part, as of ``Prediction.useful_flops``.
        flops_per_s: operations in a second, counted by the same convention.

    Raises:
        UserError: the rate is not above 0.
    """
    return sum(useful_flops.values()) / _checked_rate(flops_per_s)


def _checked_rate(flops_per_s: float) -> float:
    if not (isfinite(flops_per_s) and flops_per_s > 0):
        raise UserError(
            f"a rate of {flops_per_s} FLOP/s; it must be above 0, such as 1e11 for a CPU core"
        )
    return flops_per_s


# What the time of each group of parts may depend on: first those that patterns share.
_SHARED = {
    "feed-forward": ("calls", "feed-forward FLOPs", "feed-forward excess"),
    "optimiser": ("calls",),
    "others": ("calls", "tokens", "excess"),
}
_OF_A_PATTERN = {
    "attention": ("tokens", "pairs"),
    "whole": ("calls", "tokens", "pairs"),  # of measurements without parts
    "step": ("calls", "pairs"),  # of decoding
}
_GROUP_OF = {"feed_forward": "feed-forward", "optimiser": "optimiser", "attention": "attention"}


def _rates_of_patterns(
    measurements: Sequence[tuple[Setting, Measurement]],
) -> dict[Setting, Rates]:
    """Fit settings that differ in their lengths and patterns alone."""
    shortest = min(setting.model.seq_len for setting, _ in measurements)
    families: dict[Setting, list[_Point]] = defaultdict(list)
    for setting, measurement in measurements:
        families[without_length(setting)].append(_point(setting, measurement, shortest))
    families = {family: own for family, own in families.items() if _has_two_lengths(own)}
    clocked = {
        family: own
        for family, own in families.items()
        if not any("whole" in point.seconds for point in own)
    }
    every_point = [point for own in clocked.values() for point in own]
    shared = {group: _factors(every_point, group, names) for group, names in _SHARED.items()}
    rate = _telling_rate(clocked.values(), "attention")
    rate_of_step = _telling_rate(families.values(), "step")
    rates = {}
    for family, own in families.items():
        if family.work == "decode":
            by_group = {"step": _pattern_factors(own, "step", rate_of_step)}
        elif family in clocked:
            by_group = shared | {"attention": _pattern_factors(own, "attention", rate)}
        else:
            own = [_without_parts(point) for point in own]
            by_group = {"whole": _pattern_factors(own, "whole", rate)}
        rates[family] = Rates(shortest, by_group)
    return rates


def _has_two_lengths(points: Iterable[_Point]) -> bool:
    return len({point.does["tokens"] for point in points}) > 1


def _point(setting: Setting, measurement: Measurement, shortest: int) -> _Point:
    total, clocked = median(measurement.seconds), sum(measurement.parts_s.values())
    seconds: dict[str, float] = defaultdict(float)
    if setting.work == "decode":
        seconds["step"] = total
    elif clocked > 0:
        for part, part_s in measurement.parts_s.items():
            group = _GROUP_OF.get(part.partition(".")[0], "others")
            seconds[group] += part_s * total / clocked
    else:
        seconds["whole"] = total
    flops = flops_of_work(setting)
    attention = flops.get("scores", 0) + flops.get("values", 0)
    return _Point(
        seconds=dict(seconds),
        does=_what_it_does(setting, shortest),
        flops=sum(flops.values()),
        attention_share=attention / max(1, sum(flops.values())),  # of no pairs at all, nothing
    )


def _without_parts(point: _Point) -> _Point:
    return point._replace(seconds={"whole": sum(point.seconds.values())})


def _what_it_does(setting: Setting, shortest: int) -> dict[str, float]:
    """What the time of a setting may depend on."""
    T = setting.model.seq_len
    feed_forward = float(flops_of_work(setting).get("feed_forward", 0))
    excess = float(max(0, T - shortest))
    return {
        "calls": 1.0,
        "tokens": float(T),
        "excess": excess,
        "pairs": float(pairs_of_work(setting)),
        "feed-forward FLOPs": feed_forward,
        "feed-forward excess": feed_forward * excess / T,
    }


def _telling_rate(families: Iterable[Sequence[_Point]], group: str) -> float | None:
    """Seconds per pair by the pattern whose time tells most of them; None if none does."""
    teller = max(families, key=lambda points: _growth(points, group), default=())
    if _growth(teller, group) < _TELLING_GROWTH:
        return None
    return _factors(teller, group, _OF_A_PATTERN[group]).get("pairs")


def _growth(points: Sequence[_Point], group: str) -> float:
    """By what factor pairs per query, or the FLOPs of a step, grow over the timed lengths."""
    found = [
        point.flops if group == "step" else point.does["pairs"] / point.does["tokens"]
        for point in points
        if point.seconds.get(group) and point.does["pairs"]
    ]
    return max(found) / min(found) if found else 0.0


def _pattern_factors(points: Sequence[_Point], group: str, rate: float | None) -> dict[str, float]:
    """Fit the time of a pattern's attention, or of all its work; ``rate`` is other patterns'."""
    longest = max(points, key=lambda point: point.does["tokens"])
    known = _OF_OTHERS_RATE
    if not rate:
        share = 1.0 if group == "attention" else longest.attention_share
        known = _OF_SUPPOSED_RATE
        rate = share * longest.seconds.get(group, 0.0) / max(1, longest.does["pairs"])
    return _factors(points, group, _OF_A_PATTERN[group], (rate, known))


def _factors(
    points: Sequence[_Point],
    group: str,
    names: Sequence[str],
    known_rate: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Fit the seconds of one group of parts: seconds per unit of what they may depend on.

    Non-negative least squares of relative errors. ``known_rate`` is what is known beforehand of
    the seconds per pair, with its relative error: one equation more.
    """
    from scipy.optimize import nnls

    seconds = np.array([point.seconds.get(group, 0.0) for point in points])
    if not seconds.any():
        return {}
    amounts = np.array([[point.does[name] for name in names] for point in points])
    tokens = np.array([point.does["tokens"] for point in points])
    if group == "step":  # a short one tells what it takes in any case
        errors = _OF_MEASUREMENT * seconds
    else:  # parts of next to no time are no reason to bend the rest
        least = 0.01 * seconds.max()
        errors = _OF_MEASUREMENT * tokens.max() / tokens * np.maximum(seconds, least)
    rows, targets = amounts / errors[:, None], seconds / errors
    if known_rate and known_rate[0]:
        rate, error = known_rate
        rows = np.vstack([rows, [(name == "pairs") / (error * rate) for name in names]])
        targets = np.append(targets, 1 / error)
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1
    solution, _ = nnls(rows / scale, targets)
    return dict(zip(names, map(float, solution / scale), strict=True))
