"""The search against a look at every number."""

from functools import cache
from itertools import pairwise
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_tx.patterns import parse_pattern
from sparse_tx.patterns.algebra import LARGEST
from sparse_tx.profiler.patterns_by_length import at_length
from sparse_tx.profiler.search import largest_within


def linear_scan(cost_of, budget, most):
    return max((n for n in range(1, most + 1) if cost_of(n) <= budget), default=0)


@given(
    steps=st.lists(st.integers(0, 5), min_size=1, max_size=600),
    budget=st.integers(-2, 1000),
)
def test_a_cost_that_never_falls(steps, budget):
    costs = [sum(steps[: n + 1]) for n in range(len(steps))]
    expected = linear_scan(lambda n: costs[n - 1], budget, len(costs))
    # A look beyond the end would be an IndexError.
    assert largest_within(lambda n: costs[n - 1], budget, most=len(costs)) == expected


@given(length=st.integers(1, LARGEST), slack=st.integers(0, 100))
def test_a_large_answer_is_exact(length, slack):
    def cost_of(n):
        return n * n + 101 * n

    assert largest_within(cost_of, cost_of(length) + slack, most=LARGEST) == length


@cache
def costs_with_dips(columns, most=1200):
    """A longer block has fewer summaries before it, so that a longer sequence may cost less."""
    return [
        parse_pattern(at_length(f"fixed:sqrt:{columns}", T)).at(0, 0, 1).count_pairs(T)
        for T in range(1, most + 1)
    ]


@given(budget=st.integers(1, 60_000), columns=st.sampled_from([2, 8]))
def test_dips_of_patterns_as_wide_as_the_root(budget, columns):
    costs = costs_with_dips(columns)
    assert any(after < before for before, after in pairwise(costs))
    found = largest_within(lambda n: costs[n - 1], budget, most=len(costs))
    assert found == linear_scan(lambda n: costs[n - 1], budget, len(costs))


def test_a_stretch_within_the_budget_that_is_far_and_long():
    def cost_of(n):
        return 2 if 1_000_000 < n <= 1_030_000 or n > 1_031_000 else 1

    assert largest_within(cost_of, 1, most=LARGEST) == 1_031_000


def test_the_ends():
    assert largest_within(lambda n: n, 0.5, most=100) == 0
    assert largest_within(lambda n: n, inf, most=100) == 100
    assert largest_within(lambda n: n, 1, most=1) == 1
    assert largest_within(lambda n: 0, 0, most=LARGEST) == LARGEST


def test_few_calls():
    calls = []
    largest_within(lambda n: calls.append(n) or n * n, 10**12, most=LARGEST)
    assert len(calls) < 400


def test_what_cannot_be_searched():
    with pytest.raises(ValueError, match="nan"):
        largest_within(lambda n: n, nan, most=10)
    with pytest.raises(ValueError, match="0"):
        largest_within(lambda n: n, 5, most=0)
