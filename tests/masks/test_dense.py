"""The dense mask against the paper's sets."""

import numpy as np
import pytest
import torch

import sparse_tx.masks.dense as dense
from sparse_tx.errors import UserError
from sparse_tx.masks import dense_mask
from sparse_tx.patterns import Local, parse_layer, parse_pattern
from tests.helpers import HEADS, ODD_LENGTHS, paper_mask


@pytest.mark.parametrize("T", ODD_LENGTHS)
@pytest.mark.parametrize("notation", HEADS)
def test_equals_the_paper(notation, T):
    mask = dense_mask(notation, T)
    assert mask.dtype == torch.bool and mask.shape == (T, T)
    assert np.array_equal(mask.numpy(), paper_mask(notation, T))


def test_heads_of_a_layer():
    T, n_head = 37, 6
    mask = dense_mask(parse_layer("fixed:7:2/local:5"), T, n_head=n_head)
    assert mask.shape == (n_head, T, T)
    for head in range(n_head):
        notation = "fixed:7:2" if head < 3 else "local:5"
        assert np.array_equal(mask[head].numpy(), paper_mask(notation, T, head))


def test_all_forms_of_a_pattern_are_taken():
    expected = dense_mask(Local(5), 13)
    for form in ("local:5", parse_layer("local:5"), parse_pattern("local:5*3")):
        assert torch.equal(dense_mask(form, 13), expected)
    assert torch.equal(dense_mask(Local(5), 13, n_head=2), expected.expand(2, 13, 13))
    assert dense_mask("dense", 0).shape == (0, 0)


def test_rows_in_several_goes(monkeypatch):
    expected = dense_mask("local:5+strided:3", 41)
    monkeypatch.setattr(dense, "_PAIRS_AT_ONCE", 100)
    assert torch.equal(dense_mask("local:5+strided:3", 41), expected)


@pytest.mark.parametrize(
    ("pattern", "n_head", "sentence"),
    [
        ("local:5,strided:3", None, "has 2 different layers and a mask belongs to one"),
        ("local:5/strided:3", None, "say how many heads by n_head="),
        ("local:5/strided:3", 3, "3 heads cannot be split into 2 equal groups"),
        (5, None, "pattern is 5; give a pattern, a layer, a stack or text"),
        ("loca:5", None, "did you mean 'local'?"),
    ],
)
def test_mistakes(pattern, n_head, sentence):
    with pytest.raises(UserError) as raised:
        dense_mask(pattern, 10, n_head=n_head)
    assert sentence in str(raised.value)


def test_negative_length():
    with pytest.raises(UserError, match="a mask of -1 positions"):
        dense_mask("dense", -1)
