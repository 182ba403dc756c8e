"""How long a sequence, or how large a batch, memory has room for."""

import re
from collections.abc import Callable
from fractions import Fraction

from sparse_tx.errors import UserError, nearest
from sparse_tx.patterns.algebra import LARGEST
from sparse_tx.profiler.search import largest_within

_UNITS = {"B": 1} | {
    f"{letter}{i}B": base**power
    for i, base in (("", 1000), ("i", 1024))
    for power, letter in enumerate("kMGT", start=1)
}
_BY_LETTERS = {unit.lower(): size for unit, size in _UNITS.items()}
_NUMBER_AND_UNIT = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)\s*")


def parse_memory(text: str) -> int:
    """Read an amount of memory such as ``24GB``, ``1.5 GiB`` or ``512mib``, in whole bytes.

    kB, MB, GB and TB are powers of 1,000; KiB, MiB, GiB and TiB are powers of 1,024. Letters may
    be large or small. A fraction of a byte is dropped.

    Raises:
        UserError: no number above 0 with one of these units.
    """
    match = _NUMBER_AND_UNIT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise UserError(f"memory is {text!r}; write a number and its unit, for example '24GB'")
    number, unit = match.groups()
    if not unit:
        raise UserError(
            f"memory is {text!r} without a unit; write '{number}GB' or '{number}GiB', for example"
        )
    if unit.lower() not in _BY_LETTERS:
        raise UserError(
            f"memory is {text!r}, and there is no unit '{unit}': {nearest(unit, _BY_LETTERS)}the"
            f" units are {', '.join(_UNITS)}"
        )
    size = int(Fraction(number) * _BY_LETTERS[unit.lower()])
    if size < 1:
        raise UserError(f"memory is {text!r}; it must be 1 byte or more, for example '24GB'")
    return size


def largest_length(peak_of: Callable[[int], int], memory: int, *, most: int = LARGEST) -> int:
    """Find the longest sequence whose predicted peak fits into memory.

    Args:
        peak_of: bytes that are held at most with sequences of so many tokens, all included.
        memory: the room, in bytes.
        most: the longest that counts, in tokens; by default the longest that patterns can have.

    Returns:
        The length in tokens; 0 if not even one token fits. Exact for a peak that never falls as
        sequences grow; see ``largest_within`` for others.
    """
    return largest_within(peak_of, memory, most=most)


def largest_batch(peak_of: Callable[[int], int], memory: int, *, most: int = LARGEST) -> int:
    """Find the largest batch whose predicted peak fits into memory.

    Arguments and result as of ``largest_length``, in sequences instead of tokens.
    """
    return largest_within(peak_of, memory, most=most)
