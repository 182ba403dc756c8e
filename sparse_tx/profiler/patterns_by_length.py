"""Read what a sweep runs over: lengths, and patterns whose sizes may follow the length."""

import re
from collections.abc import Iterable
from math import isqrt

from sparse_tx.errors import UserError
from sparse_tx.patterns import parse_pattern
from sparse_tx.patterns.algebra import LARGEST

ROOT = "sqrt"
"""Stands for a size of a pattern that is the square root of the length."""

_SET = re.compile(r"[^,/+*@]+")
_IN_BLOCKS = ("summary", "fixed")  # their second size divides the first
_LENGTH = re.compile(r"([0-9]{1,18})([kKmM]?)")
_SUFFIXES = {"": 1, "k": 2**10, "m": 2**20}
_LENGTHS_LIKE = "for example '1024,4096,64k,1M' or '1024..1M'"
# At which lengths a pattern is tried out when none is given yet.
_TYPICAL = (65_536,)


def at_length(label: str, T: int) -> str:
    """Give the notation of a pattern at one length.

    The word ``sqrt`` in place of a size is the square root of ``T``, rounded to a whole number. As
    the length of blocks with summary columns it is the multiple of their number nearest to it, and
    at least one, so that sub-blocks tile the blocks: at 1,000 tokens ``local:sqrt`` is ``local:32``
    and ``fixed:sqrt:12`` is ``fixed:36:12``. All other text stays as it is.

    Args:
        label: pattern notation, with or without ``sqrt``, of any number of layers.
        T: the length in tokens.

    Raises:
        UserError: what is not notation at this length, or a length that is none.
    """
    if not isinstance(label, str) or not label.strip():
        raise UserError(f"the pattern is {label!r}; write one such as 'local:{ROOT},strided:128'")
    if not isinstance(T, int) or isinstance(T, bool) or not 1 <= T <= LARGEST:
        raise UserError(f"the length is {T!r}; it must be 1 to {LARGEST} tokens")
    text = _with_root(label, _nearest_root(T))
    try:
        parse_pattern(text)
    except UserError as error:
        if text == label:
            raise
        raise UserError(f"pattern '{label}' at length {T}: {error}") from error
    return text


def follows_length(label: str) -> bool:
    """Whether any size of the pattern is left to the length."""
    return _with_root(label, 1) != label


def parse_patterns(text: str, *, lengths: Iterable[int] = ()) -> tuple[str, ...]:
    """Read patterns separated by ``;``, such as ``"dense;local:sqrt,strided:sqrt"``.

    Args:
        text: the patterns; empty ones are left out, and all but the first of equal ones.
        lengths: at which all of them must be right, in tokens.

    Returns:
        The patterns as they are written, without spaces around them.

    Raises:
        UserError: there is none, or one is not notation at one of the lengths.
    """
    labels: dict[str, str] = {}
    for label in filter(None, map(str.strip, text.split(";"))):
        labels.setdefault("".join(label.split()), label)
    if not labels:
        raise UserError(
            f"the patterns are {text!r}; write one or more separated by ';', for example"
            " 'dense;local:128,strided:128'"
        )
    tried_at = tuple(lengths) or _TYPICAL
    for label in labels.values():
        for T in tried_at:
            at_length(label, T)
    return tuple(labels.values())


def parse_lengths(text: str) -> tuple[int, ...]:
    """Read lengths in tokens, such as ``"1024,64k,1M"``; k is 1,024 and M 1,048,576.

    ``1024..1M`` stands for 1,024 and its doubles up to 1M, ``1024..1M*4`` for steps of a factor 4.

    Returns:
        The lengths, ascending and each once.

    Raises:
        UserError: no length, or one that is not 1 to 2^31 tokens, or a range with nothing in it.
    """
    lengths: set[int] = set()
    for item in filter(None, map(str.strip, text.split(","))):
        first, dots, rest = item.partition("..")
        if not dots:
            lengths.add(_length(item, text))
            continue
        last, star, factor = rest.partition("*")
        if star and not re.fullmatch(r"\s*[0-9]{1,9}\s*", factor):
            raise UserError(f"'{item}' in lengths '{text}': '{factor}' is no factor such as 4")
        start, stop, times = _length(first, text), _length(last, text), int(factor or 2)
        if times < 2:
            raise UserError(f"'{item}' in lengths '{text}': the factor must be 2 or more")
        if start > stop:
            raise UserError(
                f"'{item}' in lengths '{text}' ends before it begins; write the shorter length"
                " first"
            )
        while start <= stop:
            lengths.add(start)
            start *= times
    if not lengths:
        raise UserError(f"the lengths are {text!r}; write some in tokens, {_LENGTHS_LIKE}")
    return tuple(sorted(lengths))


def _nearest_root(T: int) -> int:
    """The whole number nearest to the square root, which is never halfway between two."""
    root = isqrt(T)
    return root + (T - root * root > root)


def _with_root(label: str, root: int) -> str:
    return _SET.sub(lambda match: _set_with_root(match.group(), root), label)


def _set_with_root(text: str, root: int) -> str:
    """One set of a pattern, such as ``fixed:sqrt:8``, with ``root`` in place of the word."""
    word, *sizes = text.split(":")
    at_root = [str(root) if size.strip() == ROOT else size for size in sizes]
    if word.strip() in _IN_BLOCKS and len(sizes) == 2 and sizes[0].strip() == ROOT:
        columns = at_root[1].strip()
        if columns.isascii() and columns.isdecimal() and int(columns):
            at_root[0] = str(_nearest_multiple(root, int(columns)))
    return ":".join([word, *at_root])


def _nearest_multiple(number: int, of: int) -> int:
    """The multiple of ``of``, itself at least, that is nearest; the larger one of two."""
    return max(1, (2 * number + of) // (2 * of)) * of


def _length(text: str, within: str) -> int:
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        raise UserError(
            f"'{text.strip()}' in lengths '{within}' is no whole number of tokens; write"
            f" {_LENGTHS_LIKE.removeprefix('for example ')}"
        )
    digits, suffix = match.groups()
    length = int(digits) * _SUFFIXES[suffix.lower()]
    if not 1 <= length <= LARGEST:
        raise UserError(
            f"'{text.strip()}' in lengths '{within}' is {length:,} tokens; a length is 1 to"
            f" {LARGEST:,}"
        )
    return length
