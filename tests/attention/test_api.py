"""What the call checks, and what it says."""

import pytest
import torch

from sparse_tx import parse_pattern, sparse_attention
from sparse_tx.attention import resolve_engine
from sparse_tx.patterns import Fixed

X = torch.randn(2, 4, 10, 8)


def test_patterns_as_text_layer_and_head():
    stack = parse_pattern("fixed:4:2")
    by_text = sparse_attention(X, X, X, "fixed:4:2")
    assert torch.equal(by_text, sparse_attention(X, X, X, stack.layer(0)))
    # An object that is not pinned takes each head's sub-block, like text; a pinned one does not.
    assert torch.equal(by_text, sparse_attention(X, X, X, Fixed(4, 2)))
    pinned = sparse_attention(X, X, X, Fixed(4, 2, 0))
    assert torch.allclose(by_text[:, 0::2], pinned[:, 0::2])
    assert not torch.allclose(by_text[:, 1::2], pinned[:, 1::2])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(q=X[0]), "q has shape (4, 10, 8); it must be (B, H, T, D)"),
        (dict(k=X.double()), "k is torch.float64 and q is torch.float32"),
        (dict(v=X.long()), "v is torch.int64"),
        (dict(k=X[:, :, 1:]), "k has shape (2, 4, 9, 8), q (2, 4, 10, 8)"),
        (dict(v=X[:, 1:]), "v has shape (2, 3, 10, 8)"),
        (dict(q=X[:, :, :0], k=X[:, :, :0], v=X[:, :, :0]), "no dimension may be empty"),
        (dict(k=X.to("meta")), "k is on meta and q on cpu"),
        (dict(pattern="local:4,strided:4"), "describes 2 layers, but attention is one layer"),
        (dict(pattern="local:4/strided:4/dense"), "4 heads cannot be split into 3 equal groups"),
        (dict(pattern="lokal:4"), "did you mean 'local'?"),
        (dict(engine="view"), "did you mean 'views'?"),
    ],
)
def test_mistakes_get_a_sentence(arguments, sentence):
    settings = dict(q=X, k=X, v=X, pattern="local:4", engine="auto") | arguments
    with pytest.raises(ValueError) as raised:
        sparse_attention(
            settings["q"],
            settings["k"],
            settings["v"],
            settings["pattern"],
            engine=settings["engine"],
        )
    assert sentence in str(raised.value)


def test_auto_says_why():
    name, reason = resolve_engine("auto", torch.device("cpu"))
    assert name == "cpu"
    assert reason
