"""Closed-form counts of unions against brute force, at sizes that meet in every way."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_tx.patterns import parse_layer
from sparse_tx.patterns.counting import _sum_of_floors
from tests.helpers import HEADS, ODD_LENGTHS, head_notations, paper_set


def head_of(notation):
    return parse_layer(notation).at(0, 1)


@pytest.mark.parametrize("T", ODD_LENGTHS)
@pytest.mark.parametrize("notation", HEADS)
def test_equals_the_papers_set(notation, T):
    assert head_of(notation).count_pairs(T) == len(paper_set(notation, T))


@settings(max_examples=300)
@given(notation=head_notations(4), T=st.integers(0, 90))
def test_random_unions_equal_the_set(notation, T):
    assert head_of(notation).count_pairs(T) == len(paper_set(notation, T))


@settings(max_examples=300)
@given(n=st.integers(0, 40), a=st.integers(0, 90), b=st.integers(0, 90), m=st.integers(1, 30))
def test_sum_of_floors(n, a, b, m):
    assert _sum_of_floors(n, a, b, m) == sum((a * i + b) // m for i in range(n))


@given(notation=head_notations(), first=st.integers(0, 60), n=st.integers(1, 40))
def test_keys_of_several_queries_are_the_union_of_each_ones(notation, first, n):
    pattern = head_of(notation)
    queries = range(first, first + n)
    combs = pattern.combs_of_queries(queries)
    read = {j for j in range(queries.stop) if any(j in comb for comb in combs)}
    assert read == set().union(*(pattern.read_set(i) for i in queries))


@pytest.mark.parametrize(
    "notation",
    [
        "local:1024+strided:1024",
        "local:1000+summary:1024:32+strided:17",
        "block:1000+block:999+summary:1001:7",
        "fixed:1024:32+strided:1000",
    ],
)
def test_a_million_positions_are_quick_and_grow_by_what_the_last_query_reads(notation):
    pattern, T = head_of(notation), 2**20
    began = time.perf_counter()
    counts = [pattern.count_pairs(n) for n in (T, T + 1)]
    # Milliseconds on a quiet core; a sum over queries would take half a minute.
    assert time.perf_counter() - began < 5
    assert counts[1] - counts[0] == len(pattern.read_set(T))
