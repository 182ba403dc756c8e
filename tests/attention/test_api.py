"""What the call checks, and what it says."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from sparse_tx import parse_pattern, sparse_attention
from sparse_tx.attention import resolve_engine
from sparse_tx.errors import UserError
from sparse_tx.patterns import Fixed, Local

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


def call(q=X, k=X, v=X, pattern="local:4", **settings):
    return sparse_attention(q, k, v, pattern, **settings)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(q=X[0]), "q has shape (4, 10, 8); it must be (B, H, T, D)"),
        (dict(k=X[:, :, 1:]), "k has shape (2, 4, 9, 8), q (2, 4, 10, 8)"),
        (dict(v=X[:, 1:]), "v has shape (2, 3, 10, 8)"),
        (dict(q=X[:0], k=X[:0], v=X[:0]), "q has shape (0, 4, 10, 8); no dimension may be empty"),
        (dict(q=X[:, :, :0]), "q has shape (2, 4, 0, 8); no dimension may be empty"),
        (dict(q=X[..., :0], k=X[..., :0]), "q has shape (2, 4, 10, 0); no dimension may be empty"),
        (dict(v=X[..., :0]), "v has shape (2, 4, 10, 0); no dimension may be empty"),
        (dict(k=X.to("meta")), "k is on meta and q on cpu"),
        (dict(q=X.to("meta")), "q is on the device 'meta', which holds no numbers"),
        (dict(pattern="local:4,strided:4"), "describes 2 layers, but attention is one layer"),
        (dict(pattern=parse_pattern("local:4,strided:4")), "describes 2 layers"),
        (dict(pattern="local:4/strided:4/dense"), "4 heads cannot be split into 3 equal groups"),
        (dict(pattern="lokal:4"), "did you mean 'local'?"),
        (dict(pattern=""), "pattern"),
        (dict(engine="view"), "did you mean 'views'?"),
        (dict(engine="Triton"), "did you mean 'triton'?"),
        (dict(scale=float("nan")), "scale is nan; it must be finite"),
        (dict(scale=-float("inf")), "scale is -inf; it must be finite"),
        (dict(scale=1e300), "it must be finite"),
        (dict(scale=10**400), "it must be finite"),
        (dict(engine="flex", v=X.clone().requires_grad_()), "gradients are asked for v"),
        (dict(engine="triton"), "'triton' cannot run here"),
    ],
)
def test_values_that_cannot_be_used_get_a_sentence(arguments, sentence):
    with pytest.raises(UserError) as raised:
        call(**arguments)
    assert isinstance(raised.value, ValueError) and not isinstance(raised.value, TypeError)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(q=X.tolist()), "q is of type list; it must be a torch.Tensor"),
        (dict(k=X.numpy()), "k is of type ndarray"),
        (dict(v=None), "v is of type NoneType"),
        (dict(k=X.double()), "k is torch.float64 and q is torch.float32"),
        (dict(v=X.half()), "v is torch.float16 and q is torch.float32"),
        (dict(v=X.long()), "v is torch.int64"),
        (dict(q=X.bool()), "q is torch.bool"),
        (dict(q=X.to(torch.complex64)), "q is torch.complex64"),
        (dict(q=X.to(torch.float8_e4m3fn)), "q is torch.float8_e4m3fn"),
        (dict(q=X.to_sparse()), "q is torch.sparse_coo; it must be a dense tensor"),
        (dict(v=X.to_mkldnn()), "v is torch._mkldnn; it must be a dense tensor"),
        (dict(pattern=None), "pattern is None; give a pattern"),
        (dict(pattern=3), "pattern is 3; give a pattern"),
        (dict(pattern=Local), "give a pattern"),
        (dict(engine=None), "engine is None; it must be one of the names auto, reference, views"),
        (dict(engine=["views"]), "engine is ['views']"),
        (dict(scale="1"), "scale is of type str; it must be a number"),
        (dict(scale=True), "scale is of type bool"),
        (dict(scale=1j), "scale is of type complex"),
        (dict(scale=torch.tensor(0.5)), "scale is of type Tensor; it must be a number"),
    ],
)
def test_types_that_cannot_be_used_get_a_sentence(arguments, sentence):
    with pytest.raises(UserError) as raised:
        call(**arguments)
    assert isinstance(raised.value, TypeError) and isinstance(raised.value, ValueError)
    assert sentence in str(raised.value)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_cannot_be_used():
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor(list(X), layout=layout)
        with pytest.raises(TypeError, match="k is nested; it must be a dense tensor"):
            call(k=nested)


def test_tensors_of_other_kinds_that_can_be_used():
    expected = call(scale=0.5)
    for scale in (Fraction(1, 2), np.float32(0.5)):
        assert torch.equal(call(scale=scale), expected)
    one_row = torch.randn(1, 1, 1, 8)
    for engine in ("reference", "views", "cpu", "flex"):
        x = one_row.expand(2, 4, 10, 8)  # rows that are one and the same memory
        assert torch.allclose(call(x, x, x, engine=engine), x)
    assert torch.equal(call(pattern=parse_pattern("local:4")), call())


def inputs(device="cpu", dtype=torch.float32, D=8):
    return dict(device=torch.device(device), dtype=dtype, D=D, D_v=D, heads=(Local(4),))


def test_auto_says_why():
    name, reason = resolve_engine("auto", **inputs())
    assert name == "cpu"
    assert reason


def test_auto_on_other_devices_is_views_with_the_reasons():
    name, reason = resolve_engine("auto", **inputs("mps"))
    assert name == "views"
    assert reason.startswith("triton: ") and "; flex: FlexAttention is used on CUDA" in reason


@pytest.mark.parametrize(
    ("engine", "given", "reason"),
    [
        ("triton", inputs("cuda", torch.float64), "not torch.float64"),
        ("triton", inputs("cuda", D=256), "up to 128, not 256"),
        ("flex", inputs("cuda", D=8), "at least 16 on CUDA, not 8"),
        ("flex", inputs("mps"), "'mps'"),
        ("cpu", inputs("cuda"), "the tensors are on 'cuda'"),
    ],
)
def test_a_named_engine_that_cannot_run_raises(engine, given, reason):
    with pytest.raises(UserError) as raised:
        resolve_engine(engine, **given)
    sentence = str(raised.value)
    assert f"'{engine}' cannot run here" in sentence
    assert reason in sentence
    assert "choose engine='views'" in sentence
