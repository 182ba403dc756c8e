"""Live tiles against explicit masks, and the counts that a tile-wise kernel has to live with."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_tx.accounting import Tiling, tiles_in_columns, tiles_in_place
from sparse_tx.errors import UserError
from sparse_tx.patterns import Strided, parse_layer
from tests.helpers import HEADS, head_notations, paper_mask


def head_of(notation):
    return parse_layer(notation).at(0, 1)


def tiling_of(mask, tile_size):
    n = -(-len(mask) // tile_size)
    live = sum(
        mask[row * tile_size :, column * tile_size :][:tile_size, :tile_size].any()
        for row in range(n)
        for column in range(n)
    )
    return Tiling(tile_size=tile_size, causal=n * (n + 1) // 2, live=live, pairs=mask.sum())


@pytest.mark.parametrize(("T", "tile_size"), [(1, 1), (63, 8), (64, 8), (100, 7), (97, 128)])
@pytest.mark.parametrize("notation", HEADS)
def test_equals_the_mask(notation, T, tile_size):
    expected = tiling_of(paper_mask(notation, T), tile_size)
    assert tiles_in_place(head_of(notation), T, tile_size) == expected


@settings(max_examples=200)
@given(notation=head_notations(), T=st.integers(1, 90), tile_size=st.integers(1, 20))
def test_random_unions_equal_the_mask(notation, T, tile_size):
    expected = tiling_of(paper_mask(notation, T), tile_size)
    assert tiles_in_place(head_of(notation), T, tile_size) == expected


@given(stride=st.integers(1, 20), T=st.integers(1, 90), tile_size=st.integers(1, 9))
def test_columns_equal_the_masks_of_the_columns(stride, T, tile_size):
    mask = paper_mask(f"strided:{stride}", T)
    columns = [mask[r::stride, r::stride] for r in range(min(stride, T))]
    parts = [tiling_of(column, tile_size) for column in columns]
    found = tiles_in_columns(Strided(stride), T, tile_size)
    assert found.live == sum(part.live for part in parts)
    assert found.pairs == sum(part.pairs for part in parts) == np.sum(mask)
    assert found.causal == tiling_of(mask, tile_size).causal


@pytest.mark.parametrize("stride", [2, 32, 64, 128])
def test_strides_in_place_leave_no_tile_empty(stride):
    assert tiles_in_place(Strided(stride), 16_384, 128).live_share == 1


def test_useful_share_of_strides_in_place():
    assert f"{tiles_in_place(Strided(128), 16_384, 128).useful_share:.2%}" == "0.78%"


@pytest.mark.parametrize(("tile_size", "share"), [(128, "0.67"), (64, "0.80"), (32, "0.89")])
def test_useful_share_of_strides_in_columns(tile_size, share):
    assert f"{tiles_in_columns(Strided(64), 16_384, tile_size).useful_share:.2f}" == share


@pytest.mark.parametrize("tile_size", [32, 64, 128])
@pytest.mark.parametrize(
    "notation", ["local:1024", "strided:1024", "fixed:1024:32", "local:1000+strided:1009"]
)
def test_a_million_positions_are_quick(notation, tile_size):
    began = time.perf_counter()
    tiling = tiles_in_place(head_of(notation), 2**20, tile_size)
    # A second or two on a quiet core; there are 5e8 causal tiles at the smallest size.
    assert time.perf_counter() - began < 30
    assert 0 < tiling.live <= tiling.causal and 0 < tiling.useful_share <= 1


def test_a_million_positions_of_a_window():
    """Each row of tiles but the first eight sees its own tile and eight before it."""
    rows = 2**20 // 128
    assert tiles_in_place(head_of("local:1024"), 2**20, 128).live == 9 * rows - 36


@pytest.mark.parametrize("count", [tiles_in_place, tiles_in_columns])
def test_sizes_below_one(count):
    with pytest.raises(UserError, match="tile_size is 0; it must be a whole number of tokens"):
        count(Strided(3), 10, 0)
    with pytest.raises(UserError, match="T is 0; it must be a whole number of positions, 1 or"):
        count(Strided(3), 0, 10)
