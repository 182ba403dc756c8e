"""Patterns without the triangle: every form against sets written out, and what they connect."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_tx.errors import UserError
from sparse_tx.masks import dense_mask
from sparse_tx.patterns import Lattice, Tiles, parse_layer, parse_pattern, reachability
from tests.helpers import MAP_HEADS, paper_set, two_sided_mask, two_sided_set

LENGTHS = (1, 2, 13, 35, 63)


def head_of(notation, head=0, n_head=1):
    return parse_layer(notation).at(head, n_head)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("notation", MAP_HEADS)
def test_all_forms_agree(notation, T):
    pattern, expected = head_of(notation), two_sided_set(notation, T)
    assert {(i, j) for i in range(T) for j in range(T) if pattern.allows(i, j, False)} == expected
    mask = two_sided_mask(notation, T)
    position = np.arange(T)
    allowed = pattern.allows(position[:, None], position, causal=False)
    assert np.array_equal(np.broadcast_to(allowed, (T, T)), mask)
    assert np.array_equal(dense_mask(notation, T, causal=False).numpy(), mask)
    for i in range(T):
        keys = pattern.read_set(i, T)
        assert list(keys) == np.flatnonzero(mask[i]).tolist()
        assert len(keys) == mask[i].sum()
    assert pattern.count_pairs(T, causal=False) == len(expected)


@settings(max_examples=150)
@given(
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    words=st.lists(
        st.sampled_from(
            ["rows", "columns", "crisscross", "tiles", "lattice", "local", "block", "summary"]
        ),
        min_size=1,
        max_size=3,
    ),
    data=st.data(),
)
def test_random_unions_agree(width, height, words, data):
    pieces = []
    for word in words:
        size = data.draw(st.integers(1, 9)) if word in ("local", "block", "summary") else width
        piece = f"{word}:{size}"
        if word in ("tiles", "lattice", "summary"):
            piece += f":{data.draw(st.integers(1, size))}"
        pieces.append(piece)
    notation, T = "+".join(pieces), width * height
    pattern, expected = head_of(notation), two_sided_set(notation, T)
    assert {(i, j) for i in range(T) for j in pattern.read_set(i, T)} == expected
    assert pattern.count_pairs(T, causal=False) == len(expected)


@pytest.mark.parametrize("notation", MAP_HEADS)
def test_positions_of_a_class_read_the_same(notation):
    pattern, T = head_of(notation), 35
    mask, of_class = two_sided_mask(notation, T), {}
    for i in range(T):
        assert np.array_equal(of_class.setdefault(pattern.class_of(i), mask[i]), mask[i])


def test_many_tiles_and_lattices_are_counted_by_their_joint_classes():
    W, E = 96, 8
    pattern = head_of(f"tiles:{W}:{E}+lattice:{W}:{E}")
    in_both = 1  # of one tile, only the query itself stands in its lattice
    each = E * E + (W // E) ** 2 - in_both
    assert pattern.count_pairs(W * W, causal=False) == W * W * each


def test_huge_tiles_of_small_maps():
    assert list(Tiles(10**9, 10**9).read_set(4, 9)) == list(range(9))


def test_in_a_text_rows_are_blocks_and_columns_strides():
    """A map's row attention is the paper's block, its column attention the paper's stride."""
    for T in LENGTHS:
        for of_map, of_text in (
            ("rows:5", "block:5"),
            ("columns:5", "strided:5"),
            ("crisscross:5", "block:5+strided:5"),
        ):
            pattern, expected = head_of(of_map), paper_set(of_text, T)
            assert {(i, j) for i in range(T) for j in pattern.read_set(i)} == expected
            assert pattern.count_pairs(T) == len(expected)
            assert pattern.parts == head_of(of_text).parts


def test_the_centre_of_a_criss_cross_counts_once():
    H, W = 7, 5
    pattern = head_of("crisscross:5")
    assert all(len(pattern.read_set(i, H * W)) == H + W - 1 for i in range(H * W))
    assert pattern.count_pairs(H * W, causal=False) == H * W * (H + W - 1)


@pytest.mark.parametrize(("H", "W"), [(7, 5), (1, 5), (6, 1), (97, 97)])
def test_rows_then_columns_cost_h_plus_w_of_hw(H, W):
    T = H * W
    pairs = sum(head_of(f"{word}:{W}").count_pairs(T, causal=False) for word in ("rows", "columns"))
    assert pairs == T * (H + W)
    assert head_of("dense").count_pairs(T, causal=False) == T * T


def connected(notation, H, W):
    return reachability(parse_pattern(notation), H * W, n_head=1, causal=False)


@pytest.mark.parametrize(
    ("notation", "complete"),
    [
        ("rows:6,columns:6", True),
        ("columns:6,rows:6", True),
        ("rows:6,rows:6", False),
        ("crisscross:6", False),
        ("crisscross:6*2", True),
        ("tiles:6:2,lattice:6:2", True),
        ("lattice:6:2,tiles:6:2", True),
        ("tiles:6:2*2", False),
        ("lattice:6:2*2", False),
        ("dense", True),
        ("local:4*3", False),
    ],
)
def test_which_stacks_connect_a_map(notation, complete):
    """Two sampling methods "should be repeated alternatively": as a product of matrices."""
    H, W = 4, 6
    found = connected(notation, H, W)
    arrived = np.eye(H * W, dtype=int)
    for layer in parse_pattern(notation).layers:
        mask = two_sided_mask(str(layer), H * W).astype(int)
        arrived = ((mask + np.eye(H * W, dtype=int)) @ arrived > 0).astype(int)
    assert found.complete is complete
    assert found.pairs == (H * W) ** 2
    assert found.missing == (arrived == 0).sum()
    assert all(not arrived[q, k] for q, k in found.examples)
    assert bool(found.examples) is not complete


def test_tiles_that_do_not_divide_the_map_leave_gaps():
    assert not connected("tiles:7:3,lattice:7:3", 5, 7).complete


def test_sources_in_several_goes(monkeypatch):
    module = sys.modules[reachability.__module__]  # whose name in the package is the function's
    expected = connected("rows:6", 4, 6)
    monkeypatch.setattr(module, "_SOURCES_AT_ONCE", 7)
    found = connected("rows:6", 4, 6)
    assert (found.missing, found.complete) == (expected.missing, False)


@pytest.mark.parametrize("notation", ["tiles:6:2", "lattice:6:2", "local:3+tiles:6:2"])
def test_tiles_and_lattices_have_no_causal_form(notation):
    pattern = head_of(notation)
    position = torch.arange(9)
    for ask in (
        lambda: pattern.allows(position[:, None], position),
        lambda: pattern.read_set(3),
        lambda: pattern.retained(3),
        lambda: pattern.count_pairs(9),
        lambda: dense_mask(notation, 9),
        pattern.check_causal,
    ):
        with pytest.raises(UserError, match="has no causal form: it belongs to maps"):
            ask()


def test_patterns_know_the_widths_of_their_maps():
    assert parse_pattern("rows:6,columns:6/dense").map_widths == {6}
    assert parse_pattern("rows:6+tiles:7:2,local:5").map_widths == {6, 7}
    assert parse_pattern("local:6,fixed:8:2").map_widths == frozenset()


@pytest.mark.parametrize(
    ("notation", "sentence"),
    [
        ("rows", "'rows' in pattern 'rows' should read 'rows:WIDTH'"),
        ("tiles:8", "should read 'tiles:WIDTH:EDGE'"),
        ("tiles:8:9", "a 'tiles' pattern of edge 9 on a map 8 wide; the edge can be 8 at most"),
        ("lattice:8:0", "the edge of a 'lattice' pattern is 0"),
        ("columns:0", "the width of a 'columns' pattern is 0"),
        ("crisscros:8", "did you mean 'crisscross'?"),
    ],
)
def test_mistakes(notation, sentence):
    with pytest.raises(UserError) as raised:
        parse_pattern(notation)
    assert sentence in str(raised.value)


def test_notation_round_trips():
    text = "rows:6*2,columns:6/crisscross:6,tiles:6:2+lattice:6:3"
    assert str(parse_pattern(text)) == text
    assert head_of("tiles:6:2") == Tiles(6, 2) and head_of("lattice:6:2") == Lattice(6, 2)
    assert Tiles(6, 2) != Lattice(6, 2)
