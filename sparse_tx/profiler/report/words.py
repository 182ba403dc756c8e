"""How a report writes numbers, and what it calls things: one rule for each unit.

Bytes and FLOPs count in thousands (1 GB is 10^9 bytes) with three digits, durations have two digits
in the largest unit that they fill, whole counts have separators.
"""

from math import floor, isfinite, log10

from sparse_tx.patterns import (
    BlockLocal,
    Dense,
    Layer,
    Local,
    Pattern,
    Stack,
    Strided,
    Summary,
)

UNKNOWN = "-"
"""Stands where there is no figure."""

WORK_NAMES = {
    "attention": "attention of one layer",
    "forward": "forward pass",
    "train": "training step",
    "prefill": "prefill of a prompt",
    "decode": "decoding step",
}

QUANTITY_NAMES = {
    "seconds": "time",
    "peak_bytes": "peak memory",
    "useful_flops": "useful FLOPs",
    "weights_bytes": "bytes of attention weights",
}

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")
_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86_400, 365 * 86_400
# The first unit whose limit a duration stays under; (limit in s, unit in s, name).
_DURATIONS = (
    (1e-4, 1e-6, "µs"),
    (0.1, 1e-3, "ms"),
    (99.5, 1, "s"),
    (99.5 * _MINUTE, _MINUTE, "min"),
    (47.5 * _HOUR, _HOUR, "h"),
    (730 * _DAY, _DAY, "days"),
    (float("inf"), _YEAR, "years"),
)


def count_text(n: int) -> str:
    """A whole count with separators: ``1,048,576``."""
    return f"{n:,}"


def bytes_text(n: float | None) -> str:
    """Bytes in units of thousands: ``512 B``, ``1.23 GB``."""
    return _in_thousands(n, "B")


def flops_text(n: float | None) -> str:
    """Floating-point operations: ``1.23 TFLOP``."""
    return _in_thousands(n, "FLOP")


def macs_text(n: float | None) -> str:
    """Multiply-accumulates: ``22.2 GMAC``."""
    return _in_thousands(n, "MAC")


def seconds_text(seconds: float | None) -> str:
    """A duration: ``0.34 s``, ``12 s``, ``3.4 min``, ``2.1 h``, ``5 days``."""
    if seconds is None or not isfinite(seconds):
        return UNKNOWN
    if seconds == 0:
        return "0 s"
    unit, name = next((unit, name) for limit, unit, name in _DURATIONS if seconds < limit)
    value = _rounded(seconds / unit, digits=2)
    return f"{value} {name.removesuffix('s') if value == '1' and len(name) > 3 else name}"


def rate_text(per_second: float | None) -> str:
    """A rate without its unit, to three digits: ``12,100``, ``0.25``."""
    return UNKNOWN if per_second is None else _rounded(per_second, digits=3)


def share_text(share: float | None, digits: int = 3) -> str:
    """A share in percent: ``3.12 %``."""
    if share is None or not isfinite(share):
        return UNKNOWN
    return f"{_rounded(100 * share, digits)} %"


def difference_text(difference: float | None) -> str:
    """A relative difference in percent with its sign: ``+3.2 %``."""
    if difference is None or not isfinite(difference):
        return UNKNOWN
    percent = 100 * difference
    return f"{percent:+,.1f} %" if abs(percent) < 99.95 else f"{percent:+,.0f} %"


def quantity_text(value: float | None, quantity: str) -> str:
    """A value of a quantity that laws, crossovers and reaches name, such as ``seconds``."""
    if quantity == "seconds":
        return seconds_text(value)
    return bytes_text(value) if quantity.endswith("bytes") else flops_text(value)


def quantity_name(quantity: str) -> str:
    """What a quantity is called in prose."""
    return QUANTITY_NAMES.get(quantity, plain_name(quantity))


def plain_name(identifier: str) -> str:
    """An identifier as words: ``feed_forward.backward`` is ``feed forward backward``."""
    return identifier.replace("_", " ").replace(".", " ")


def one(work: str) -> str:
    """A work with its article: ``a training step``."""
    return WORK_NAMES[work] if work == "attention" else f"a {WORK_NAMES[work]}"


def joined(words: list[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def what_it_reads(stack: Stack, n_head: int) -> str:
    """Say in one sentence which positions a query of each layer reads.

    Args:
        stack: the patterns of one round of layers.
        n_head: heads per layer.
    """
    rounds = list(dict.fromkeys(stack.layers))
    if len(rounds) == 1:
        return f"Every layer reads {_layer_reads(rounds[0], n_head)}."
    if len(stack.layers) > len(rounds):
        return "Layers read either " + "; or ".join(_layer_reads(x, n_head) for x in rounds) + "."
    return (
        "Layers take turns: one reads "
        + "; the next ".join(_layer_reads(layer, n_head) for layer in rounds)
        + "."
    )


def _layer_reads(layer: Layer, n_head: int) -> str:
    groups = list(dict.fromkeys(layer.groups))
    if len(groups) == 1:
        return _head_reads(groups[0], n_head)
    return "by groups of heads, " + " or ".join(_head_reads(group, n_head) for group in groups)


def _head_reads(pattern: Pattern, n_head: int) -> str:
    return " and ".join(dict.fromkeys(_set_reads(part, n_head) for part in pattern.parts))


def _set_reads(part: Pattern, n_head: int) -> str:
    match part:
        case Dense():
            return "all earlier positions"
        case Local(window=window):
            return "its own position alone" if window == 1 else f"the last {window:,} positions"
        case Strided(stride=stride):
            return f"every {_ordinal(stride)} position, counted back from its own"
        case BlockLocal(length=length):
            return f"what precedes it in its own block of {length:,}"
        case Summary(length=length, columns=columns):
            own = "the same" if part.subblock is not None or n_head == 1 else "its head's own"
            return f"{own} {columns:,} columns of every block of {length:,}"
    return str(part)


def _ordinal(n: int) -> str:
    suffix = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n:,}{suffix}"


def _in_thousands(n: float | None, unit: str) -> str:
    if n is None or not isfinite(n):
        return UNKNOWN
    step = 0
    # A value that would be rounded to 1,000 belongs to the next unit.
    while abs(n) >= 999.5 and step < len(_PREFIXES) - 1:
        n, step = n / 1000, step + 1
    return f"{_rounded(n, digits=3) if step else f'{n:g}'} {_PREFIXES[step]}{unit}"


def _rounded(value: float, digits: int) -> str:
    """To so many significant digits, never in powers of ten; whole numbers are kept whole."""
    if value == 0 or not isfinite(value):
        return f"{value:g}"
    decimals = digits - 1 - floor(log10(abs(value)))
    text = f"{round(value, decimals):,.{max(0, decimals)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
