"""Reachability through a stack, against products of boolean matrices."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_tx.patterns import parse_pattern, reachability
from tests.helpers import head_notations, paper_mask

LAYERS = st.lists(head_notations(2), min_size=1, max_size=2).map("/".join)


def connected(stack_text, T, n_layer, n_head):
    """(T, T) bool: whether key reaches query, by multiplying the layers' masks."""
    layers = stack_text.split(",")
    reach = np.eye(T, dtype=bool)
    for number in range(n_layer):
        groups = layers[number % len(layers)].split("/")
        mask = np.eye(T, dtype=bool)  # the residual stream
        for head in range(n_head):
            mask |= paper_mask(groups[head * len(groups) // n_head], T, head)
        reach = mask @ reach
    return reach


@settings(max_examples=60)
@given(
    layers=st.lists(LAYERS, min_size=1, max_size=3), T=st.integers(1, 30), depth=st.integers(1, 4)
)
def test_equals_boolean_matrix_products(layers, T, depth):
    text = ",".join(layers)
    result = reachability(parse_pattern(text), T, n_layer=depth, n_head=2)
    missing = np.argwhere(np.tril(~connected(text, T, depth, 2)))
    assert result.pairs == T * (T + 1) // 2
    assert result.missing == len(missing)
    assert result.complete == (len(missing) == 0)
    assert len(result.examples) == min(8, len(missing))
    assert set(result.examples) <= {(int(i), int(j)) for i, j in missing}


@pytest.mark.parametrize(
    ("text", "n_head", "complete"),
    [
        ("dense", 1, True),
        ("local:8,strided:8", 1, True),  # the paper's two steps, in either order
        ("strided:8,local:8", 1, True),
        ("local:7,strided:8", 1, False),  # one key too few between the strides
        ("local:8/strided:8", 2, False),  # both sets in one layer are still one step
        ("local:8/strided:8,local:8/strided:8", 2, True),
        ("strided:8*4", 1, False),
        ("fixed:8:1", 1, False),
        ("fixed:8:1*2", 1, True),  # to the block's last column, and from there to everyone after
        ("block:8,summary:8:8", 1, True),
    ],
)
def test_known_stacks(text, n_head, complete):
    assert reachability(parse_pattern(text), 100, n_head=n_head).complete is complete


def test_depth_is_one_round_unless_it_is_said():
    stack = parse_pattern("local:10")
    assert reachability(stack, 40, n_head=1).missing == 31 * 30 // 2
    # Each layer reaches 9 positions further.
    assert not reachability(stack, 40, n_layer=4, n_head=1).complete
    assert reachability(stack, 40, n_layer=5, n_head=1).complete


def test_batches_of_sources_change_nothing(monkeypatch):
    stack = parse_pattern("fixed:7:2,strided:5")
    whole = reachability(stack, 61, n_head=3)
    module = sys.modules[reachability.__module__]  # the package gives the function its name
    monkeypatch.setattr(module, "_SOURCES_AT_ONCE", 16)
    assert reachability(stack, 61, n_head=3) == whole
