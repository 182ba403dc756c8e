"""Pictures of patterns: as text for a terminal, and as PNG in the manner of the paper's figure 3.

Rows are queries, columns are keys. Sequences too long for one mark per pair are drawn in square
cells of several positions, shaded by the share of their pairs that is allowed; the shares come from
``pairs_of_queries``, so that no picture ever needs T x T of anything.
"""

import os
from dataclasses import fields
from functools import partial
from math import lcm

import numpy as np

from sparse_tx.errors import UserError
from sparse_tx.masks.cells import cell_shares, numbered, sets_of_layer
from sparse_tx.masks.heads import one_layer
from sparse_tx.masks.picture_file import write_picture
from sparse_tx.patterns import Layer, Pattern, Stack
from sparse_tx.patterns.given import PatternLike, as_stack

TEXT_CELLS = 64
# Lengths that pictures have where nobody names one.
SHORTEST_SHOWN, LONGEST_UNASKED = 48, 65_536
_TIMES_SHOWN = 4

_SET_MARKS = "▓▒░"
_SHADES = "░▒▓█"
_TERMINAL_WIDTH = 100


def length_that_shows(stack: Stack) -> int:
    """A length at which the largest window, stride or block stands a few times in the picture."""
    sizes = [
        getattr(part, size.name) or 0
        for layer in stack.layers
        for group in layer.groups
        for part in group.parts
        for size in fields(part)
    ]
    return min(max(SHORTEST_SHOWN, _TIMES_SHOWN * max(sizes, default=0)), LONGEST_UNASKED)


def text_picture(pattern: PatternLike, T: int, n_head: int | None = None) -> str:
    """Draw one layer in text: a block of lines for each distinct head, with a legend.

    Up to ``TEXT_CELLS`` positions every character is one pair, marked by the set that allows it;
    beyond that it is a cell of several positions, shaded by the share of allowed pairs.

    Args:
        pattern: one head's pattern, a layer, or the notation of one layer.
        T: how many positions, in tokens.
        n_head: heads of the layer (default: one for each of its groups).

    Raises:
        UserError: the notation cannot be read, is of several layers, or does not fit ``n_head``.
    """
    _require_positions(T)
    layer = one_layer(pattern)
    n_head = n_head or len(layer.groups)
    heads_of: dict[Pattern, list[int]] = {}
    for head, own in enumerate(layer.heads(n_head)):
        heads_of.setdefault(own, []).append(head)
    cell = -(-T // TEXT_CELLS)
    if cell == 1:
        marks = _marks_of_sets(layer, n_head)
        names: dict[str, list[str]] = {}
        for part, mark in marks.items():
            names.setdefault(mark, []).append(str(part))
        meanings = [f"{mark} {' or '.join(parts)}" for mark, parts in names.items()]
        legend = "   ".join(["rows: queries, columns: keys", "█ the query itself", *meanings])
        draw = partial(_rows_of_pairs, marks=marks, T=T)
    else:
        bounds = (f"{shade} to {100 * n // len(_SHADES)} %" for n, shade in enumerate(_SHADES, 1))
        legend = (
            f"{cell:,} x {cell:,} positions a character; share of pairs read: {'  '.join(bounds)}"
        )
        draw = partial(_rows_of_cells, cell=cell, T=T)
    panels = [
        [_heads_label(heads, n_head) + str(own), *draw(own)] for own, heads in heads_of.items()
    ]
    return "\n".join([*_side_by_side(panels), "", f"{legend}   · not read"])


def _marks_of_sets(layer: Layer, n_head: int) -> dict[Pattern, str]:
    """A mark for each of the layer's sets; the last mark serves all that are left."""
    last = len(_SET_MARKS) - 1
    return {part: _SET_MARKS[min(n, last)] for n, part in enumerate(sets_of_layer(layer, n_head))}


def _rows_of_pairs(pattern: Pattern, marks: dict[Pattern, str], T: int) -> list[str]:
    def mark(q: int, k: int) -> str:
        if k == q and pattern.allows(q, k):
            return "█"
        return next((marks[part] for part in pattern.parts if part.allows(q, k)), "·")

    return ["".join(mark(q, k) for k in range(q + 1)) for q in range(T)]


def _rows_of_cells(pattern: Pattern, cell: int, T: int) -> list[str]:
    shares = cell_shares(pattern, T, cell)
    level = np.ceil(shares * len(_SHADES)).astype(int)
    return ["".join(("·" + _SHADES)[n] for n in level[row, : row + 1]) for row in range(len(level))]


def _side_by_side(panels: list[list[str]], gap: int = 4) -> list[str]:
    """Join blocks of lines from left to right, on a new band where the terminal would end."""
    lines: list[str] = []
    band: list[list[str]] = []
    for panel in [*panels, None]:
        widths = [max(map(len, block)) for block in [*band, panel or [""]]]
        if band and (panel is None or sum(widths) + gap * len(band) > _TERMINAL_WIDTH):
            lines += [""] if lines else []
            for row in range(max(map(len, band))):
                cells = (block[row] if row < len(block) else "" for block in band)
                padded = (text.ljust(w) for text, w in zip(cells, widths, strict=False))
                lines.append((" " * gap).join(padded).rstrip())
            band = []
        if panel is not None:
            band.append(panel)
    return lines


def save_png(
    pattern: PatternLike,
    path: str | os.PathLike,
    *,
    T: int,
    n_head: int | None = None,
    n_layer: int | None = None,
) -> None:
    """Draw connectivity matrices as a PNG file: one panel for each distinct layer.

    A panel shows the lower triangle of (query, key) pairs with every set of the layer's heads in
    its own blue, and below it the row of one query. After figure 3 of Child et al. 2019. The file
    appears under its name only when it is complete.

    Args:
        pattern: a whole stack, a layer, one head's pattern, or the notation of one of them.
        path: where the file goes.
        T: how many positions, in tokens.
        n_head: heads per layer (default: as few as the layers' groups allow).
        n_layer: depth over which the stack's layers repeat (default: one round).

    Raises:
        UserError: the notation cannot be read, does not fit ``n_head``, or ``path`` cannot be
            written.
    """
    _require_positions(T)
    stack = as_stack(pattern)
    n_head = n_head or lcm(*(len(layer.groups) for layer in stack.layers))
    numbers_of: dict[Layer, list[int]] = {}
    for number in range(n_layer or len(stack.layers)):
        numbers_of.setdefault(stack.layer(number), []).append(number)
    from sparse_tx.masks.figure import draw_stack  # matplotlib takes a second to import

    figure = draw_stack(stack, numbers_of, T, n_head)
    write_picture(figure, path)


def _require_positions(T: int) -> None:
    if T < 1:
        raise UserError(f"a picture of {T} positions; draw 1 or more")


def _heads_label(heads: list[int], n_head: int) -> str:
    return "" if len(heads) == n_head else f"{numbered('head', heads)}: "
