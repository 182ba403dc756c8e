"""Tick marks of logarithmic axes, with units that people read: coarse ones first, then finer."""

from collections.abc import Callable, Iterable
from math import ceil, floor, log10

from sparse_tx.profiler.report.words import (
    bytes_text,
    count_text,
    flops_text,
    macs_text,
    seconds_text,
)

Ticks = list[tuple[float, str]]

FEWEST_TICKS = 3
"""On an axis, before a finer level is taken."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_ROUND_TIMES = (_MINUTE, 10 * _MINUTE, _HOUR, 10 * _HOUR, _DAY, 10 * _DAY, 100 * _DAY, 1000 * _DAY)
_FINER_TIMES = tuple(
    n * unit
    for unit, multiples in (
        (_MINUTE, (1, 2, 5, 10, 20, 30)),
        (_HOUR, (1, 2, 5, 10, 24, 48, 120, 240, 480, 1200)),
    )
    for n in multiples
)


def length_levels(lengths: Iterable[int]) -> list[Ticks]:
    """One level of ticks: at the lengths themselves, in tokens."""
    return [[(float(n), count_text(n)) for n in sorted(set(lengths))]]


def quantity_levels(kind: str, values: Iterable[float]) -> list[Ticks]:
    """Levels of ticks around ``values``: powers of ten, then 1-2-5, then every digit.

    Args:
        kind: ``bytes``, ``flops``, ``macs`` or ``seconds``, which are told in minutes, hours and
            days.
        values: those above 0 decide the range; a decade is left on both sides.
    """
    known = [value for value in values if value > 0]
    if not known:
        return []
    low, high = floor(log10(min(known))) - 1, ceil(log10(max(known))) + 1
    text: Callable[[float], str] = {
        "bytes": bytes_text,
        "flops": flops_text,
        "macs": macs_text,
        "seconds": _time_mark,
    }[kind]
    levels = []
    for digits in ((1,), (1, 2, 5), tuple(range(1, 10))):
        marks = [float(f"{digit}e{power}") for power in range(low, high + 1) for digit in digits]
        if kind == "seconds":
            times = _ROUND_TIMES if digits == (1,) else _FINER_TIMES
            marks = [mark for mark in marks if mark < _MINUTE]
            marks += [float(mark) for mark in times if mark <= 10**high]
        levels.append([(mark, text(mark)) for mark in marks])
    return levels


def _time_mark(seconds: float) -> str:
    """``10 s``, ``1 min``, ``2 h``, ``100 days``: round times in the largest unit they fill."""
    for unit, name in ((_DAY, "day"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit and seconds % unit == 0:
            n = int(seconds // unit)
            return f"{n:,} {name}{'s' if name == 'day' and n > 1 else ''}"
    return seconds_text(seconds)


def chosen_ticks(levels: list[Ticks], low: float, high: float, most: int) -> Ticks:
    """The ticks to show between ``low`` and ``high``: the coarsest level that has enough.

    The page chooses by the same rule in ``page.js``, again whenever a plot is zoomed or resized.

    Args:
        levels: from coarse to fine.
        low: the axis begins here.
        high: the axis ends here.
        most: more are thinned out evenly.
    """
    shown: Ticks = []
    for level in levels:
        shown = [tick for tick in level if low <= tick[0] <= high]
        if len(shown) >= FEWEST_TICKS:
            break
    step = max(1, ceil(len(shown) / most))
    return shown[::-1][::step][::-1]
