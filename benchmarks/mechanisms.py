"""Tasks that tell the parts of an attention gate apart, which no small natural data set can.

An image holds several bars, each in one of four directions; the label is the direction of some, and
something elsewhere in the image decides of which. A sum over places of what is found in each, which
is what a convolutional network has before its classifier, cannot choose among bars that are far
from what decides; a gate can, if its descriptor holds that:

* ``rare patch``: bright bars or dark ones, by whether one small patch is anywhere. In a mean over
  all places it drowns; the maximum keeps it.
* ``dot density``: bright bars or dark ones, by how much of the image is dotted. The mean tells; in
  the maximum, little dotted ground is as much as a lot.
* ``marked place``: one bar of three, by a patch beside it. Bars are all alike, so that channels say
  nothing, and a gate over places can keep one if it looks as far as the patch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EDGE = 24
BAR = 5
# The bars of each direction on a square of BAR x BAR: flat, upright, falling and rising.
BARS = np.zeros((4, BAR, BAR), dtype=np.float32)
BARS[0, BAR // 2, :] = BARS[1, :, BAR // 2] = 1
BARS[2], BARS[3] = np.eye(BAR), np.eye(BAR)[::-1]
PATCH = 2 * (np.indices((3, 3)).sum(0) % 2 * 2 - 1).astype(np.float32)  # -2 in corners and centre
NOISE = 0.3

BARS_OF_A_GROUP = 3
FEW_DOTTED, MANY_DOTTED = (2, 4), (6, 8)
DOT = np.full((1, 1), 2, dtype=np.float32)

Made = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """A task that one part of a gate is needed for.

    Attributes:
        make: images ``(N, EDGE, EDGE)`` float32 and labels ``(N,)`` int64 below ``classes``, from N
            and a generator.
        classes: how many labels there are, all equally frequent.
    """

    make: Callable[[int, np.random.Generator], Made]
    classes: int = len(BARS)


def rare_patch(count: int, rng: np.random.Generator) -> Made:
    """Bright bars decide, unless one patch of 3 x 3 is somewhere: then dark bars do."""
    images, directions, free, cell = _bright_and_dark_bars(count, rng)
    has_patch = rng.integers(2, size=count)
    for image, row, places in zip(images, has_patch, free, strict=True):
        if row:
            _put(image, PATCH, places[0], cell, rng)
    return images, directions[np.arange(count), has_patch]


def dot_density(count: int, rng: np.random.Generator) -> Made:
    """Bright bars decide where dots are few, dark bars where they are many.

    Of the cells without bars few or many are dotted all over, and the others not at all: from near
    by, dotted ground looks the same in both cases, and so does ground without dots.
    """
    images, directions, free, cell = _bright_and_dark_bars(count, rng)
    are_many = rng.integers(2, size=count)
    squares = 3 * np.argwhere(np.ones((cell // 3,) * 2))  # a dot in each, of 3 x 3
    for image, many, places in zip(images, are_many, free, strict=True):
        fewest, most = MANY_DOTTED if many else FEW_DOTTED
        for place in places[: rng.integers(fewest, most + 1)]:
            for square in squares:
                _put(image, DOT, place + square, 3, rng)
    return images, directions[np.arange(count), are_many]


def marked_place(count: int, rng: np.random.Generator) -> Made:
    """Of three bars, one above another, the one decides that a patch lies to the right of."""
    cell = EDGE // 3
    images = _ground(count, rng)
    directions = rng.integers(len(BARS), size=(count, 3))
    marked = rng.integers(3, size=count)
    for image, own, row in zip(images, directions, marked, strict=True):
        for above, direction in enumerate(own):
            _put(image, BARS[direction], np.array([cell * above, 0]), cell, rng)
        _put(image, PATCH, np.array([cell * row, cell]), cell, rng)
    return images, directions[np.arange(count), marked]


MECHANISMS = {
    "rare patch": Mechanism(make=rare_patch),
    "dot density": Mechanism(make=dot_density),
    "marked place": Mechanism(make=marked_place),
}


def _bright_and_dark_bars(
    count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Images with bars of both groups, each in a cell of its own.

    Returns:
        The images; directions ``(N, 2)`` of the bright and of the dark bars; the corners
        ``(N, n, 2)`` of the cells left free, in any order; and the edge of a cell.
    """
    cell = EDGE // 4
    images = _ground(count, rng)
    corners = _corners(cell)
    directions = rng.integers(len(BARS), size=(count, 2))
    free = np.empty((count, len(corners) - 2 * BARS_OF_A_GROUP, 2), dtype=np.int64)
    for image, (bright, dark), left in zip(images, directions, free, strict=True):
        shuffled = rng.permutation(corners)
        for n, corner in enumerate(shuffled[: 2 * BARS_OF_A_GROUP]):
            bar = BARS[bright] if n < BARS_OF_A_GROUP else -BARS[dark]
            _put(image, bar, corner, cell, rng)
        left[:] = shuffled[2 * BARS_OF_A_GROUP :]
    return images, directions, free, cell


def _ground(count: int, rng: np.random.Generator) -> np.ndarray:
    """Images of nothing but noise."""
    return NOISE * rng.standard_normal((count, EDGE, EDGE), dtype=np.float32)


def _corners(cell: int) -> np.ndarray:
    """The upper left corners ``(n, 2)`` of the cells that tile an image."""
    return np.argwhere(np.ones((EDGE // cell,) * 2)) * cell


def _put(
    image: np.ndarray, what: np.ndarray, corner: np.ndarray, cell: int, rng: np.random.Generator
) -> None:
    """Add ``what`` to an image, anywhere within the cell that has this corner."""
    height, width = what.shape
    top, left = corner + rng.integers(cell - np.array([height, width]) + 1)
    image[top : top + height, left : left + width] += what
