"""What a caller may give as a pattern, and what one asks of it."""

from collections.abc import Sequence

from sparse_tx.errors import UserError, UserTypeError
from sparse_tx.patterns.algebra import Pattern
from sparse_tx.patterns.notation import parse_pattern
from sparse_tx.patterns.stacks import Layer, Stack

PatternLike = Pattern | Layer | Stack | str
"""One head's pattern, that of a layer or of all layers, or the notation of any."""


def as_stack(pattern: PatternLike, name: str = "pattern", *, such_as: str = "local:128") -> Stack:
    """A pattern as a stack of layers, of which it may be the only one.

    Args:
        pattern: what a caller gave.
        name: what the caller calls it.
        such_as: notation that would do.

    Raises:
        UserTypeError: it is no pattern.
        UserError: it is text that cannot be read.
    """
    if isinstance(pattern, str):
        pattern = parse_pattern(pattern)
    elif isinstance(pattern, Pattern):
        pattern = Layer((pattern,))
    if isinstance(pattern, Layer):
        pattern = Stack((pattern,))
    if not isinstance(pattern, Stack):
        raise UserTypeError(
            f"{name} is {pattern!r}; give a pattern, a layer, a stack or text such as '{such_as}'"
        )
    return pattern


def require_width(
    pattern: Pattern | Layer | Stack, shape: Sequence[int], name: str = "pattern"
) -> None:
    """Refuse a pattern of maps with rows of another width than ``shape[-1]``.

    Args:
        pattern: of any kind; one that knows of no rows fits every map.
        shape: positions along each axis of the map, such as ``(H, W)``.
        name: what the caller calls the pattern.

    Raises:
        UserError: it does not fit.
    """
    width = shape[-1]
    if others := sorted(pattern.map_widths - {width}):
        raise UserError(
            f"{name} '{pattern}' is for maps with rows of {others[0]} positions, and those of a map"
            f" of {'x'.join(map(str, shape))} have {width}; write {width} for {others[0]}"
        )
