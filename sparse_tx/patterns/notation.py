"""Read the text form of patterns; ``str`` of a pattern, layer or stack writes it.

stack  = layer ["*" count] {"," layer ["*" count]}      successive layers
layer  = head {"/" head}                                equal groups of heads
head   = set {"+" set}                                  sets merged within a head
set    = word {":" size} ["@" sub-block]                for example local:128, fixed:128:32@1
"""

import re
from dataclasses import MISSING, fields

from sparse_tx.errors import UserError, nearest
from sparse_tx.patterns.algebra import (
    BlockLocal,
    Dense,
    Fixed,
    Local,
    Pattern,
    Strided,
    Summary,
    Union,
)
from sparse_tx.patterns.maps import Columns, CrissCross, Lattice, Rows, Tiles
from sparse_tx.patterns.stacks import Layer, Stack

_OF_A_SEQUENCE = (Dense, Local, Strided, BlockLocal, Summary, Fixed)
_OF_A_MAP = (Rows, Columns, CrissCross, Tiles, Lattice)
WORDS = {cls.word: cls for cls in _OF_A_SEQUENCE + _OF_A_MAP}

# No model is deeper; a slip of the keyboard should not fill the memory.
MAX_LAYERS = 10_000
# Of more digits, Python itself refuses to make a number in the end.
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,30}")


def parse_pattern(text: str) -> Stack:
    """Read the notation of a whole model's patterns, such as ``"local:128*3,strided:128"``.

    Raises:
        UserError: what cannot be read, where it stands, and the nearest form that can.
    """
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"the pattern is {text!r}; write one such as 'local:128,strided:128'")
    layers: list[Layer] = []
    for item in text.split(","):
        layer, star, repeat = item.partition("*")
        count = _whole_number(repeat, item, text) if star else 1
        if count < 1 or len(layers) + count > MAX_LAYERS:
            raise UserError(f"'{item.strip()}' in pattern '{text}': repeat 1 to {MAX_LAYERS} times")
        layers += [parse_layer(layer, text)] * count
    return Stack(tuple(layers))


def parse_layer(text: str, within: str | None = None) -> Layer:
    """Read one layer's notation, ``"local:128/strided:128"``; ``within`` is for messages."""
    return Layer(tuple(_parse_head(head, within or text) for head in text.split("/")))


def _parse_head(text: str, within: str) -> Pattern:
    sets = [_parse_set(part.strip(), within) for part in text.split("+")]
    return sets[0] if len(sets) == 1 else Union(tuple(sets))


def _parse_set(text: str, within: str) -> Pattern:
    body, at, pin = text.partition("@")
    word, *sizes = body.split(":")
    if word not in WORDS:
        raise UserError(
            f"unknown word '{word}' in pattern '{within}': {nearest(word, WORDS)}the words are"
            f" {', '.join(WORDS)}"
        )
    cls = WORDS[word]
    names = [field.name for field in fields(cls) if field.default is MISSING]
    if len(sizes) != len(names):
        form = ":".join([word, *(name.upper() for name in names)])
        raise UserError(f"'{body}' in pattern '{within}' should read '{form}'")
    values = [_whole_number(size, text, within) for size in sizes]
    if not at:
        return cls(*values)
    if not issubclass(cls, Summary):
        raise UserError(
            f"'{text}' in pattern '{within}': only summary and fixed have sub-blocks to pin by '@'"
        )
    return cls(*values, subblock=_whole_number(pin, text, within))


def _whole_number(digits: str, where: str, within: str) -> int:
    digits = digits.strip()
    if not _WHOLE_NUMBER.fullmatch(digits):
        raise UserError(
            f"'{digits}' in '{where.strip()}' of pattern '{within}' is no whole number of tokens"
        )
    return int(digits)
