"""Pictures of maps: what one query reads, and what reaches it through all layers."""

import numpy as np
import pytest

from sparse_tx.errors import UserError
from sparse_tx.masks import save_map_png, text_map
from sparse_tx.masks.map_picture import QUERY, REACHED, UNREAD, reached_on_map, read_on_map
from sparse_tx.patterns import parse_layer, parse_pattern
from tests.helpers import MAP_HEADS, two_sided_mask


def layers_of(stack):
    found = {}
    for number, layer in enumerate(stack.layers):
        found.setdefault(layer, []).append(number)
    return found


def text(notation, H, W, query=0, n_head=1):
    stack = parse_pattern(notation)
    return text_map(stack, layers_of(stack), H, W, query=query, n_head=n_head)


@pytest.mark.parametrize("notation", [n for n in MAP_HEADS if ":7" not in n])
def test_what_is_read(notation):
    H, W, query = 3, 5, 8
    marks = read_on_map(parse_layer(notation).at(0, 1), query, H, W)
    expected = two_sided_mask(notation, H * W)[query]
    expected[query] = True
    assert np.array_equal(marks.ravel() != UNREAD, expected)
    assert marks.ravel()[query] == QUERY


@pytest.mark.parametrize(
    "notation", ["rows:5,columns:5", "rows:5*2", "tiles:5:2,lattice:5:2", "local:2*3"]
)
def test_what_has_arrived(notation):
    H, W, query = 4, 5, 13
    stack = parse_pattern(notation)
    arrived = np.eye(H * W, dtype=int)
    for layer in stack.layers:
        arrived = (two_sided_mask(str(layer), H * W) + np.eye(H * W, dtype=int)) @ arrived
    marks = reached_on_map(stack, query, H, W, n_layer=len(stack.layers), n_head=1)
    assert np.array_equal(marks.ravel() != UNREAD, arrived[query] > 0)
    assert set(np.unique(marks)) <= {UNREAD, REACHED, QUERY}


def test_rows_then_columns_as_text():
    assert text("rows:4,columns:4", 3, 4, query=5) == "\n".join(
        [
            "layer 0: rows:4 reads 4",
            "····",
            "▓█▓▓",
            "····",
            "",
            "layer 1: columns:4 reads 3",
            "·▓··",
            "·█··",
            "·▓··",
            "",
            "all 2 layers in turn: 12 of 12",
            "▒▒▒▒",
            "▒█▒▒",
            "▒▒▒▒",
            "",
            "█ the query   ▓ read   ▒ arrived by way of others   · not",
        ]
    )


def test_png(tmp_path):
    stack = parse_pattern("crisscross:9*2,tiles:9:3/lattice:9:3")
    for H in (1, 9, 200):
        path = tmp_path / f"{H}.png"
        save_map_png(stack, layers_of(stack), path, H, 9, query=H * 4, n_head=2)
        assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.png", "200.png", "9.png"]


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="rows of 6 positions, and those of a map of 4x7 have 7"):
        text("rows:6,columns:7", 4, 7)
    with pytest.raises(UserError, match="a map of 2 x 200 has no picture in text"):
        text("dense", 2, 200)
    stack = parse_pattern("dense")
    options = {"query": 0, "n_head": 1}
    with pytest.raises(UserError, match="cannot write the picture"):
        save_map_png(stack, layers_of(stack), tmp_path / "no" / "x.png", 3, 3, **options)
    with pytest.raises(UserError, match="a picture of 4,000,000 positions"):
        save_map_png(stack, layers_of(stack), tmp_path / "x.png", 2000, 2000, **options)
