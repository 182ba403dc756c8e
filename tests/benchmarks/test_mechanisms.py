"""The mechanism tasks: labels found again by looking at the images, without their noise."""

from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COUNT = 211


@pytest.fixture
def mechanisms(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import mechanisms

    return mechanisms


@pytest.fixture
def clear(mechanisms, monkeypatch):
    """The tasks without noise."""
    monkeypatch.setattr(mechanisms, "NOISE", 0)
    return mechanisms


def bar(direction: int) -> list[list[int]]:
    """Flat, upright, falling, rising."""
    lies = [
        lambda y, x: y == 2,
        lambda y, x: x == 2,
        lambda y, x: y == x,
        lambda y, x: y + x == 4,
    ][direction]
    return [[int(lies(y, x)) for x in range(5)] for y in range(5)]


def bars_in(image: np.ndarray, brightness: int) -> list[int]:
    """The directions of all bars that lie in a cell of 6 x 6 with nothing else."""
    starts = [start for start in range(20) if start % 6 < 2]
    squares = [image[y : y + 5, x : x + 5].tolist() for y in starts for x in starts]
    wanted = [(np.array(bar(direction)) * brightness).tolist() for direction in range(4)]
    return [wanted.index(square) for square in squares if square in wanted]


def groups_of(image: np.ndarray) -> list[int]:
    """The direction that all bright bars share, and that of all dark ones."""
    found = [bars_in(image, brightness) for brightness in (1, -1)]
    assert [len(own) for own in found] == [3, 3]
    (bright,), (dark,) = map(set, found)
    return [bright, dark]


def test_one_patch_anywhere_decides(clear):
    images, labels = clear.rare_patch(COUNT, np.random.default_rng(1))
    patches = 0
    for image, label in zip(images, labels, strict=True):
        places = np.argwhere(image == -2)
        assert len(places) in (0, 5) and (image == 2).sum() == (4 if len(places) else 0)
        if len(places):
            assert (places.max(0) - places.min(0)).tolist() == [2, 2]
        assert label == groups_of(image)[len(places) > 0]
        patches += len(places) > 0
    assert abs(patches - COUNT / 2) < 4 * (COUNT / 4) ** 0.5


def test_the_dotted_part_decides(clear):
    images, labels = clear.dot_density(COUNT, np.random.default_rng(1))
    numbers = []
    for image, label in zip(images, labels, strict=True):
        dots = image == 2
        in_cells = dots.reshape(4, 6, 4, 6).sum((1, 3))
        assert set(in_cells.flat) == {0, 4}
        assert dots.reshape(8, 3, 8, 3).sum((1, 3)).max() == 1
        numbers.append(int((in_cells == 4).sum()))
        assert label == groups_of(image)[numbers[-1] > 5]
        assert set(np.unique(image)) == {-1, 0, 1, 2}  # nothing lies on another
    assert set(numbers) == {2, 3, 4, 6, 7, 8}


def test_the_patch_beside_it_decides(clear):
    images, labels = clear.marked_place(COUNT, np.random.default_rng(1))
    rows = []
    for image, label in zip(images, labels, strict=True):
        places = np.argwhere(abs(image) == 2)
        assert len(places) == 9 and places[:, 1].min() >= 8 and not image[:, 16:].any()
        (row,) = set(places[:, 0] // 8)
        own = image[8 * row : 8 * row + 8, :8]
        squares = [own[y : y + 5, x : x + 5].tolist() for y in range(4) for x in range(4)]
        assert bar(label) in squares and own.sum() == 5
        assert (image == 1).sum() == 3 * 5
        rows.append(row)
    assert np.bincount(rows).min() > COUNT / 5


@pytest.mark.parametrize("task", ["rare patch", "dot density", "marked place"])
def test_labels_are_balanced_and_made_by_the_seed(mechanisms, task):
    mechanism = mechanisms.MECHANISMS[task]
    images, labels = mechanism.make(1009, np.random.default_rng(1))
    assert images.shape == (1009, 24, 24) and images.dtype == np.float32
    assert labels.dtype == np.int64
    counts = np.bincount(labels, minlength=mechanism.classes)
    share = 1 / mechanism.classes
    deviation = (1009 * share * (1 - share)) ** 0.5
    assert len(counts) == mechanism.classes and abs(counts - 1009 * share).max() < 4 * deviation
    again = mechanism.make(1009, np.random.default_rng(1))
    assert np.array_equal(again[0], images) and np.array_equal(again[1], labels)
    assert not np.array_equal(mechanism.make(1009, np.random.default_rng(2))[0], images)
