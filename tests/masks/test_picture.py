"""Pictures: the text ones mark by mark, the PNG ones by the pixels that they are made of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_tx.errors import UserError
from sparse_tx.masks import save_png, text_picture
from sparse_tx.masks.cells import cell_shares, numbered, row_shares, sets_of_layer
from sparse_tx.masks.picture import TEXT_CELLS
from sparse_tx.patterns import Local, Strided, parse_layer, parse_pattern
from tests.helpers import HEADS, paper_mask, set_notations

PNG_START = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("T", [1, 13, 64])
@pytest.mark.parametrize("notation", HEADS)
def test_text_marks_exactly_the_pairs(notation, T):
    lines = text_picture(notation, T).splitlines()
    rows, mask = lines[1 : T + 1], paper_mask(notation, T)
    assert [len(row) for row in rows] == list(range(1, T + 1))
    for query, row in enumerate(rows):
        assert [mark != "·" for mark in row] == mask[query, : query + 1].tolist()
        assert all((mark == "█") == (key == query) for key, mark in enumerate(row) if mark != "·")


def test_text_of_a_small_layer():
    picture = text_picture("local:2/strided:3", 5)
    assert picture.splitlines() == [
        "head 0: local:2    head 1: strided:3",
        "█                  █",
        "▓█                 ·█",
        "·▓█                ··█",
        "··▓█               ▒··█",
        "···▓█              ·▒··█",
        "",
        "rows: queries, columns: keys   █ the query itself   ▓ local:2   ▒ strided:3   · not read",
    ]


def test_text_of_many_heads_goes_on_below():
    picture = text_picture("summary:8:2", 60, n_head=4)
    assert sum(line.count("head ") for line in picture.splitlines()) == 4
    assert max(map(len, picture.splitlines()[:-1])) <= 100


def test_long_text_states_its_scale():
    T = 10 * TEXT_CELLS - 3
    lines = text_picture("local:25", T).splitlines()
    assert "10 x 10 positions a character" in lines[-1]
    assert len(lines[1 : TEXT_CELLS + 1][-1]) == TEXT_CELLS
    assert lines[TEXT_CELLS].endswith("·░██▓")  # a corner of a cell, two whole ones, a triangle
    assert lines[TEXT_CELLS].startswith("·····")


@settings(max_examples=60)
@given(notation=set_notations(), T=st.integers(1, 60), cell=st.integers(1, 20))
def test_shares_of_cells(notation, T, cell):
    pattern = parse_layer(notation).at(0, 1)
    read = sum(paper_mask(str(part), T).astype(int) for part in pattern.parts)
    shares = cell_shares(pattern, T, cell)
    for row, column in np.ndindex(shares.shape):
        square = read[row * cell :, column * cell :][:cell, :cell]
        assert shares[row, column] == pytest.approx(min(1, square.mean()))
    query = T - 1
    for column, share in enumerate(row_shares(pattern, range(query, T), cell)):
        assert share == pytest.approx(min(1, read[query, column * cell :][:cell].mean()))


def test_sets_of_a_layer():
    assert sets_of_layer(parse_layer("local:3/strided:5+local:3"), 2) == {
        Local(3): [0, 1],
        Strided(5): [1],
    }
    sets = sets_of_layer(parse_layer("fixed:8:2"), 8)
    assert [str(pattern) for pattern in sets] == [
        "block:8",
        *(f"summary:8:2@{subblock}" for subblock in range(4)),
    ]
    assert list(sets.values())[1:] == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_numbers_by_runs():
    assert numbered("layer", [3]) == "layer 3"
    assert numbered("layer", [0, 1, 2, 4]) == "layers 0-2, 4"
    assert numbered("head", list(range(0, 40, 2))) == "heads 0, 2, 4, 6, …, 38"


@pytest.mark.parametrize(
    ("pattern", "T", "n_head", "n_layer"),
    [
        (Local(3), 1, None, None),
        (parse_layer("local:6/strided:6"), 36, 2, None),
        (parse_pattern("dense,local:8*2,fixed:8:2,summary:9:2,strided:7"), 300, 8, 13),
        ("local:256,strided:256", 20_000, 1, 2),
    ],
)
def test_png_is_written_whole(pattern, T, n_head, n_layer, tmp_path):
    path = tmp_path / "pattern.png"
    save_png(pattern, path, T=T, n_head=n_head, n_layer=n_layer)
    assert path.read_bytes().startswith(PNG_START)
    assert list(tmp_path.iterdir()) == [path]


def test_png_pixels_are_the_mask():
    from sparse_tx.masks.figure import UNREAD, _matrix_image, _strip_image, to_rgb

    T, colour = 31, (0.1, 0.4, 0.8)
    pattern = parse_layer("summary:7:2@1").at(0, 1)
    image = _matrix_image({pattern: colour}, T, 1)
    mask = paper_mask("summary:7:2@1", T)
    assert np.all(image[~np.tri(T, dtype=bool)] == 1)
    assert np.allclose(image[np.tri(T, dtype=bool) & ~mask], to_rgb(UNREAD))
    assert np.allclose(image[mask & ~np.eye(T, dtype=bool)], colour)
    assert np.allclose(_strip_image({pattern: colour}, T, 1, 25)[0], image[25])


def test_png_that_cannot_be_written(tmp_path):
    taken = tmp_path / "folder.png"
    taken.mkdir()
    for path in (tmp_path / "missing" / "x.png", taken, "."):
        with pytest.raises(UserError, match="cannot write the picture to"):
            save_png("local:3", path, T=9)
    assert list(tmp_path.iterdir()) == [taken]


def test_mistakes():
    with pytest.raises(UserError, match="a picture of 0 positions"):
        text_picture("dense", 0)
    with pytest.raises(UserError, match="2 different layers"):
        text_picture("dense,local:3", 9)
    with pytest.raises(UserError, match="3 heads"):
        save_png("dense/local:3", "x.png", T=9, n_head=3)
