"""Tile layouts, which never look at T x T pairs, against masks, which do."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_tx.errors import UserError
from sparse_tx.masks import TileCounts, pairs_of_queries, tile_layout
from sparse_tx.masks.tiles import EMPTY, FULL, PARTIAL
from sparse_tx.patterns import parse_layer
from tests.helpers import HEADS, head_notations, paper_mask


def head_of(notation):
    return parse_layer(notation).at(0, 1)


def kinds_of(mask, tile_size):
    n = -(-len(mask) // tile_size)
    kinds = np.full((n, n), EMPTY)
    for row in range(n):
        for column in range(n):
            tile = mask[row * tile_size :, column * tile_size :][:tile_size, :tile_size]
            kinds[row, column] = FULL if tile.all() else PARTIAL if tile.any() else EMPTY
    return kinds


@pytest.mark.parametrize(
    ("T", "tile_size"), [(1, 1), (1, 8), (63, 8), (64, 8), (100, 7), (97, 128)]
)
@pytest.mark.parametrize("notation", HEADS)
def test_equals_the_mask(notation, T, tile_size):
    kinds = tile_layout(notation, T, tile_size).to_dense()
    assert np.array_equal(kinds, kinds_of(paper_mask(notation, T), tile_size))


@settings(max_examples=200)
@given(notation=head_notations(), T=st.integers(1, 70), tile_size=st.integers(1, 20))
def test_random_unions_equal_the_mask(notation, T, tile_size):
    layout = tile_layout(notation, T, tile_size)
    kinds = kinds_of(paper_mask(notation, T), tile_size)
    assert np.array_equal(layout.to_dense(), kinds)
    causal = np.tril(np.ones_like(kinds)) > 0
    counts = layout.counts()
    assert counts == TileCounts(*(np.sum(kinds[causal] == kind) for kind in (EMPTY, PARTIAL, FULL)))
    assert counts.live == np.sum(kinds != EMPTY)


@given(
    notation=head_notations(), T=st.integers(1, 60), tile_size=st.integers(1, 20), data=st.data()
)
def test_pairs_of_queries(notation, T, tile_size, data):
    first = data.draw(st.integers(0, T - 1))
    queries = range(first, data.draw(st.integers(first + 1, T)))
    pattern = head_of(notation)
    pairs = pairs_of_queries(pattern, queries, tile_size)
    assert pairs.shape == (len(pattern.parts), -(-queries.stop // tile_size))
    for part, counted in zip(pattern.parts, pairs, strict=True):
        mask = paper_mask(str(part), T)[first : queries.stop]
        for tile, n in enumerate(counted):
            assert n == mask[:, tile * tile_size : (tile + 1) * tile_size].sum()


def test_sets_that_fill_a_tile_only_together():
    """Even and odd distances: neither set alone has a full tile, their union has only such."""
    layout = tile_layout("summary:2:1@0+summary:2:1@1", 64, 8)
    assert layout.counts() == TileCounts(empty=0, partial=8, full=28)


def test_rows_are_ascending_and_in_range():
    layout = tile_layout("local:20+strided:32", 300, 16)
    assert layout.offsets[0] == 0 and layout.offsets[-1] == len(layout.key_tiles)
    for row, (begin, end) in enumerate(zip(layout.offsets, layout.offsets[1:], strict=False)):
        tiles = layout.key_tiles[begin:end]
        assert np.all(np.diff(tiles) > 0)
        assert tiles[-1] == row


@pytest.mark.parametrize("stride", [2, 32, 64, 128])
def test_unpermuted_strides_leave_no_tile_empty(stride):
    """At the usual tile a mask alone saves a strided pattern nothing: every causal tile is live."""
    counts = tile_layout(f"strided:{stride}", 16_384, 128).counts()
    assert counts == TileCounts(empty=0, partial=128 * 129 // 2, full=0)


def test_useful_share_of_unpermuted_strides():
    layout = tile_layout("strided:128", 16_384, 128)
    assert f"{100 * layout.useful_share(head_of('strided:128')):.2f} %" == "0.78 %"


@pytest.mark.parametrize(("tile_size", "share"), [(128, "0.67"), (64, "0.80"), (32, "0.89")])
def test_useful_share_of_permuted_strides(tile_size, share):
    """Positions sorted by residue: 64 runs of 256 positions, each attending within itself."""
    permuted = head_of("block:256")
    assert permuted.count_pairs(16_384) == head_of("strided:64").count_pairs(16_384)
    assert f"{tile_layout(permuted, 16_384, tile_size).useful_share(permuted):.2f}" == share


@pytest.mark.parametrize("notation", ["local:256", "strided:65536", "local:256+block:300"])
def test_long_sequences_are_quick_and_small(notation):
    T = 65_536
    began = time.perf_counter()
    tile_layout(notation, T, 128)
    # About half a second on a quiet core; T x T would take minutes.
    assert time.perf_counter() - began < 20
    tracemalloc.start()
    tile_layout(notation, T // 2, 128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_sizes_far_beyond_the_sequence_cost_nothing():
    assert tile_layout("strided:1000000007", 1000, 64).counts().partial == 16
    assert tile_layout("summary:1000000007:3", 1000, 64).counts() == TileCounts(136, 0, 0)
    assert tile_layout("local:1000000007", 1024, 64).counts() == TileCounts(0, 16, 120)


@pytest.mark.parametrize(("T", "tile_size"), [(0, 8), (8, 0), (-1, 8)])
def test_sizes_below_one(T, tile_size):
    with pytest.raises(UserError, match="both must be whole numbers, 1 or more"):
        tile_layout("dense", T, tile_size)


def test_a_layout_is_of_one_head():
    with pytest.raises(UserError, match="different patterns"):
        tile_layout("dense/local:3", 10, 2)
