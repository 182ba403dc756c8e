"""At which lengths an audit looks: on both sides of everything that has an edge."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import count
from math import isqrt

from sparse_tx.errors import UserError
from sparse_tx.patterns import Stack

# Weights and masks are T x T here.
LONGEST = 4_096
# Engines compute in tiles of these numbers of positions.
_TILES = (64, 128)
# Two of the larger tiles, and one position more.
_LEAST = 2 * _TILES[-1] + 1
# A window, stride or block beyond this makes no audit longer unless a length is asked for.
_LARGEST_SIZE = 1_100
# Sizes up to this one are met from both sides; longer ones, which cost more, only from above.
_BOTH_SIDES = 256
_GOLDEN_RATIO = (1 + 5**0.5) / 2


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens.

    Attributes:
        longest: of which the rounds on a whole model are.
        shorter: the others, ascending, for attention alone.
        unreached: windows, strides and blocks that no text of these lengths gets to the end of,
            though the model takes longer ones.
    """

    longest: int
    shorter: tuple[int, ...]
    unreached: tuple[int, ...]


def sizes(stack: Stack) -> list[int]:
    """The windows, strides, blocks and summary columns of all layers and heads, ascending."""
    return sorted(
        {
            getattr(part, field.name)
            for layer in stack.layers
            for group in layer.groups
            for part in group.parts
            for field in fields(part)
            if field.name != "subblock"
        }
    )


def choose_lengths(stack: Stack, seq_len: int, asked: int | None = None) -> Lengths:
    """Choose lengths that are quickly audited and yet meet the edges of patterns and tiles.

    The longest is prime where it can be, and beyond the windows, strides and blocks that are not
    too long for that; the shorter ones are one less and one more than each, and than tiles.

    Args:
        stack: the patterns.
        seq_len: the longest text that the model takes.
        asked: the longest length, if it is not to be chosen.

    Raises:
        UserError: what is asked for is below 1, or longer than the model or an audit can take.
    """
    known = sizes(stack)
    if asked is None:
        aims = [min(2 * size + 1, size + 129) for size in known if size <= _LARGEST_SIZE]
        longest = min(_prime_from(max([_LEAST, *aims])), seq_len)
    else:
        longest = _checked(asked, seq_len)
    edges = {1, 2, _prime_up_to(longest)}
    for size in (*_TILES, *known):
        edges |= {size - 1, size, size + 1} if size <= _BOTH_SIDES else {size + 1}
    return Lengths(
        longest,
        tuple(sorted(length for length in edges if 0 < length < longest)),
        tuple(size for size in known if longest <= size < seq_len),
    )


def _checked(asked: int, seq_len: int) -> int:
    if asked < 1:
        raise UserError(f"seq_len is {asked}; it must be 1 or more")
    if asked > seq_len:
        raise UserError(
            f"seq_len is {asked}, and the model takes texts of {seq_len:,} tokens at most; give a"
            " length up to that"
        )
    if asked > LONGEST:
        raise UserError(
            f"seq_len is {asked}; an audit looks at every pair of positions, and takes {LONGEST:,}"
            " at most"
        )
    return asked


def spread(T: int, n: int, first: Iterable[int]) -> list[int]:
    """Choose n of T positions, ascending: those of ``first`` in turn, then some far from others."""
    if n >= T:
        return list(range(T))
    wanted = [position for position in (0, T - 1, *first) if 0 <= position < T]
    chosen = dict.fromkeys(wanted)
    for turn in count(1):
        if len(chosen) >= n:
            return sorted(list(chosen)[:n])
        chosen.setdefault(int(T * (turn * _GOLDEN_RATIO % 1)))


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % divisor for divisor in range(2, isqrt(n) + 1))


def _prime_from(n: int) -> int:
    return next(candidate for candidate in count(n) if _is_prime(candidate))


def _prime_up_to(n: int) -> int:
    return next((candidate for candidate in range(n, 1, -1) if _is_prime(candidate)), 1)
