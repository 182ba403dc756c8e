"""Exact counts: the figures that the literature states, and closed forms at great lengths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_tx.patterns import Dense, Fixed, Local, Strided, parse_layer
from tests.helpers import head_notations, paper_set


def count(notation, T):
    return parse_layer(notation).at(0, 1).count_pairs(T)


def test_pairs_of_the_papers_text_model():
    T = 12_288
    assert count("dense", T) == 75_503_616
    assert count("fixed:128:32", T) == 19_470_336
    assert round(100 * 19_470_336 / 75_503_616, 1) == 25.8


def test_merged_strided_counts_the_query_once():
    """A window of exactly 128 keys and the stride of 128 have only the query itself in common.

    The paper's set notation would give the window l + 1 = 129 keys, its code l = 128; a window here
    counts keys, as its code does, and the merged figure of the literature, 2,148,416, is that one.
    """
    T = 12_288
    assert count("local:128", T) == 1_564_736
    assert count("strided:128", T) == 595_968
    assert count("local:128+strided:128", T) == 1_564_736 + 595_968 - T == 2_148_416
    # With the window of 129 every further pair is in the strided set too: the union is the same.
    assert count("local:129+strided:128", T) == 2_148_416


@pytest.mark.parametrize(
    ("T", "size", "local", "strided", "alternating", "fixed_8", "fixed_32"),
    [
        (12_288, 128, "48", "127", "70", "13.8", "3.9"),
        (65_536, 256, "128", "255", "171", "28.5", "7.8"),
        (1_048_576, 1024, "512", "1023", "683", "114", "31"),
    ],
)
def test_ratios_of_dense_to_pattern(T, size, local, strided, alternating, fixed_8, fixed_32):
    """Alternating layers of local and strided cost the mean of both."""

    def ratio(pairs, like):
        return f"{Dense().count_pairs(T) / pairs:.{len(like.partition('.')[2])}f}"

    windows, strides = Local(size).count_pairs(T), Strided(size).count_pairs(T)
    assert ratio(windows, local) == local
    assert ratio(strides, strided) == strided
    assert ratio((windows + strides) / 2, alternating) == alternating
    assert ratio(Fixed(size, 8).count_pairs(T), fixed_8) == fixed_8
    assert ratio(Fixed(size, 32).count_pairs(T), fixed_32) == fixed_32


@given(notation=head_notations(1), T=st.integers(0, 90))
def test_closed_forms(notation, T):
    assert count(notation, T) == len(paper_set(notation, T))


@pytest.mark.parametrize(
    "notation", ["dense", "local:1000", "strided:1000", "block:999", "summary:999:7", "fixed:999:7"]
)
def test_great_lengths_grow_by_what_the_last_query_reads(notation):
    pattern = parse_layer(notation).at(0, 1)
    for T in (2**20, 10**9 + 7):
        assert pattern.count_pairs(T + 1) - pattern.count_pairs(T) == len(pattern.read_set(T))


def test_heads_of_different_subblocks_differ_in_count():
    """A summary nearer to the block's end has fewer readers within the block."""
    counts = [head.count_pairs(100) for head in parse_layer("summary:8:2").heads(4)]
    assert counts == [len(paper_set("summary:8:2", 100, head)) for head in range(4)]
    assert counts == sorted(counts) and len(set(counts)) > 1
