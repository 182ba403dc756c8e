"""Pictures of patterns on maps: which positions of a map one query reads, and reaches.

A matrix of all pairs says little about a map, whose positions are pairs themselves. So one query
is picked, and the map is drawn with what it reads in every layer, and with what has arrived there
after all layers in turn.
"""

import os
from functools import reduce

import numpy as np

from sparse_tx.errors import UserError
from sparse_tx.masks.cells import numbered
from sparse_tx.masks.picture_file import write_picture
from sparse_tx.patterns import Layer, Pattern, Stack
from sparse_tx.patterns.given import require_width

# Larger maps are for ``--png``.
WIDEST_TEXT, HIGHEST_TEXT = 128, 512
UNREAD, READ, REACHED, QUERY = range(4)
_MARKS = "·▓▒█"
_LARGEST = 1 << 20


def fits_text(H: int, W: int) -> bool:
    """Whether a map is small enough for a picture in text."""
    return H <= HIGHEST_TEXT and W <= WIDEST_TEXT


def read_on_map(pattern: Pattern, query: int, H: int, W: int) -> np.ndarray:
    """What one query reads: ``(H, W)`` uint8 of UNREAD, READ and QUERY."""
    marks = np.zeros(H * W, dtype=np.uint8)
    for keys in pattern.read_set(query, H * W).ranges():
        marks[keys.start : keys.stop : keys.step] = READ
    marks[query] = QUERY
    return marks.reshape(H, W)


def reached_on_map(stack: Stack, query: int, H: int, W: int, *, n_layer: int, n_head: int):
    """What a query has heard of after ``n_layer`` layers: ``(H, W)`` uint8 with REACHED.

    Followed from the last layer, where the query reads, down to the first.
    """
    T = H * W
    reached = np.zeros(T, dtype=bool)
    reached[query] = True
    for number in reversed(range(n_layer)):
        reached = reduce(
            np.logical_or,
            (_sources(part, reached, T) for part in _sets(stack.layer(number), n_head)),
            reached,
        )
    marks = np.where(reached, REACHED, UNREAD).astype(np.uint8)
    marks[query] = QUERY
    return marks.reshape(H, W)


def _sets(layer: Layer, n_head: int) -> dict[Pattern, None]:
    return dict.fromkeys(part for head in layer.heads(n_head) for part in head.parts)


def _sources(part: Pattern, readers: np.ndarray, T: int) -> np.ndarray:
    """Where any of the ``readers`` reads; positions of one class read the same."""
    read = np.zeros(T, dtype=bool)
    of_class = {part.class_of(i): i for i in np.flatnonzero(readers).tolist()}
    for one in of_class.values():
        for keys in part.read_set(one, T).ranges():
            read[keys.start : keys.stop : keys.step] = True
    return read


def panels(
    stack: Stack, layers: dict[Layer, list[int]], H: int, W: int, *, query: int, n_head: int
) -> list[tuple[str, np.ndarray]]:
    """A title and a map for every distinct head, and one of all layers in turn."""
    n_layer = sum(map(len, layers.values()))
    found = []
    for layer, numbers in layers.items():
        for head in dict.fromkeys(layer.heads(n_head)):
            marks = read_on_map(head, query, H, W)
            n_read = len(head.read_set(query, H * W))
            found.append((f"{numbered('layer', numbers)}: {head} reads {n_read:,}", marks))
    if n_layer > 1:
        marks = reached_on_map(stack, query, H, W, n_layer=n_layer, n_head=n_head)
        n = int((marks != UNREAD).sum())
        found.append((f"all {n_layer} layers in turn: {n:,} of {H * W:,}", marks))
    return found


def text_map(
    stack: Stack, layers: dict[Layer, list[int]], H: int, W: int, *, query: int, n_head: int
) -> str:
    """The panels as text, one below the other.

    Args:
        stack: the patterns of one round.
        layers: the distinct layers, each with the numbers that it has over the depth.
        H: rows of the map.
        W: columns of the map.
        query: the position that is looked at.
        n_head: heads per layer.

    Raises:
        UserError: the map is too wide for text, or the pattern is made for another width.
    """
    require_width(stack, (H, W))
    if not fits_text(H, W):
        raise UserError(
            f"a map of {H} x {W} has no picture in text, which has {HIGHEST_TEXT} rows of"
            f" {WIDEST_TEXT} at most; draw it by --png FILE"
        )
    blocks = []
    for title, marks in panels(stack, layers, H, W, query=query, n_head=n_head):
        blocks.append("\n".join([title, *("".join(_MARKS[m] for m in row) for row in marks)]))
    legend = "█ the query   ▓ read   ▒ arrived by way of others   · not"
    return "\n\n".join([*blocks, legend])


def save_map_png(
    stack: Stack,
    layers: dict[Layer, list[int]],
    path: str | os.PathLike,
    H: int,
    W: int,
    *,
    query: int,
    n_head: int,
) -> None:
    """Draw the panels as a PNG file; the arguments are those of ``text_map``.

    Raises:
        UserError: the map is too large, the pattern is made for another width, or ``path`` cannot
            be written.
    """
    require_width(stack, (H, W))
    if H * W > _LARGEST:
        raise UserError(f"a picture of {H * W:,} positions; maps of {_LARGEST:,} at most are drawn")
    from sparse_tx.masks.map_figure import draw_maps  # matplotlib takes a second to import

    found = panels(stack, layers, H, W, query=query, n_head=n_head)
    write_picture(draw_maps(str(stack), found), path)
