"""Attended pairs of whole models against the paper's sets, head by head."""

import pytest

from sparse_tx.accounting import PerHead, attended_pairs
from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError
from tests.helpers import HEADS, paper_set

STACK = "local:7*2,strided:5/fixed:8:2,dense/summary:8:2/local:3+strided:4/block:11"


def model(pattern, n_head=1, n_layer=1, **settings):
    width = 4 * n_head
    return ModelConfig(
        pattern=pattern, n_head=n_head, n_layer=n_layer, n_embd=width, vocab_size=17, **settings
    )


@pytest.mark.parametrize("notation", HEADS)
def test_one_head(notation):
    assert attended_pairs(model(notation), 61) == PerHead(((len(paper_set(notation, 61)),),))


def test_layers_and_heads_have_their_own():
    """Summary sub-blocks are dealt by the head's number, groups in order, layers in turn."""
    pairs = attended_pairs(model(STACK, n_head=8, n_layer=6), 61)
    layers = [
        layer.split("/") for layer in STACK.replace("local:7*2", "local:7,local:7").split(",")
    ]
    for number, row in enumerate(pairs.heads):
        groups = layers[number % len(layers)]
        for head, count in enumerate(row):
            notation = groups[head * len(groups) // 8]
            assert count == len(paper_set(notation, 61, head))
    assert len(pairs.heads) == 6 and pairs.heads[0] == pairs.heads[4]
    assert pairs.by_layer == tuple(sum(row) for row in pairs.heads)
    assert pairs.total == sum(pairs.by_layer)


def test_the_papers_text_model():
    assert set(attended_pairs(model("fixed:128:32@0", seq_len=12_288)).heads[0]) == {19_470_336}
    assert attended_pairs(model("dense", seq_len=12_288)).total == 75_503_616


@pytest.mark.parametrize("T", [0, -3, 2.0, True])
def test_no_length(T):
    with pytest.raises(UserError, match=f"T is {T!r}; it must be a whole number of positions"):
        attended_pairs(model("dense"), T)
