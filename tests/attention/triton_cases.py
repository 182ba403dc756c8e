"""What the Triton kernels must do, on any device: ``test_triton`` runs this file twice.

Under Triton's interpreter on the CPU, in a process of its own, because the interpreter replaces
Triton for a whole process; and compiled, where there is a GPU.
"""

import os

import pytest
import torch

from sparse_tx.attention import reference, self_check
from sparse_tx.attention.triton import attend, why_not
from sparse_tx.patterns import parse_layer
from tests.helpers import HEADS, paper_mask

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
LAYERS = (
    "local:7/strided:7",
    "fixed:12:3",
    "fixed:12:3/dense/local:5/strided:4",
    "summary:6:2+local:3/block:9+strided:6",
    "summary:9:2/summary:7:1+strided:9",
)
MANY_TILES = (
    "local:40",
    "strided:2",
    "fixed:48:11@1",
    "block:50+local:20+strided:3+strided:5+summary:9:2@1",
)
# float32 rounds sums of some hundred terms of size 1.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_inputs(B, H, T, D, D_v, dtype=torch.float32):
    """q, k, v and a gradient of the output, in the memory layout ``(B, T, H, D)``."""
    widths = (D, D, D_v, D_v)
    return [draw(B, T, H, w, seed=n).to(dtype).transpose(1, 2) for n, w in enumerate(widths)]


def run(engine, notation, q, k, v, d_out, scale=None):
    """The output and the three gradients, on the CPU."""
    device = DEVICE if engine is attend else "cpu"
    q, k, v = (x.detach().to(device).requires_grad_() for x in (q, k, v))
    heads = parse_layer(notation).heads(q.shape[1])
    out = engine(q, k, v, heads, q.shape[3] ** -0.5 if scale is None else scale)
    out.backward(d_out.to(device))
    return [x.detach().cpu() for x in (out, q.grad, k.grad, v.grad)]


def check(notation, *inputs, scale=None):
    found = run(attend, notation, *inputs, scale=scale)
    expected = run(reference.attend, notation, *(x.double() for x in inputs), scale=scale)
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        size = max(1.0, b.abs().max().item())
        assert a.dtype == inputs[0].dtype and a.shape == b.shape
        assert (a - b).abs().max().item() < TOLERANCE[a.dtype] * size, name


@pytest.mark.parametrize("notation", HEADS)
def test_equal_the_reference(notation):
    check(notation, *make_inputs(1, 1, 37, 16, 16))


@pytest.mark.parametrize("T", [1, 5])
def test_short_sequences(T):
    for notation in ("local:3", "strided:2", "fixed:8:2", "summary:4:1", "local:2+strided:3"):
        check(notation, *make_inputs(1, 1, T, 16, 16))


@pytest.mark.parametrize("notation", LAYERS)
def test_patterns_that_differ_from_head_to_head(notation):
    check(notation, *make_inputs(1, 4, 29, 16, 16))


@pytest.mark.parametrize("shape", [(16, 32), (32, 16)])
@pytest.mark.parametrize("notation", MANY_TILES)
def test_many_tiles(notation, shape, monkeypatch):
    from sparse_tx.attention.triton import tuning

    if DEVICE == "cpu":  # a GPU tries its own shapes
        for kernel in (tuning.forward, tuning.query_gradient, tuning.key_gradients):
            config = kernel.configs[0]
            other = type(config)(dict(zip(("BLOCK_M", "BLOCK_N"), shape, strict=True)))
            monkeypatch.setattr(kernel, "configs", [other])
    check(notation, *make_inputs(1, 1, 130, 16, 16))


@pytest.mark.parametrize(("D", "D_v"), [(3, 5), (24, 16), (16, 40)])
def test_any_head_dimension(D, D_v):
    check("fixed:12:3", *make_inputs(1, 1, 23, D, D_v))
    check("strided:5", *make_inputs(1, 1, 23, D, D_v))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies the bit patterns of bfloat16")
    check("local:9+strided:4+summary:7:2", *make_inputs(1, 1, 37, 16, 16, dtype))


def test_any_strides():
    for notation in ("local:9+strided:4", "fixed:12:3"):
        q, k, v, d_out = make_inputs(2, 2, 11, 16, 16)
        check(notation, q.contiguous(), k.mT.contiguous().mT, v, d_out.contiguous())
        # Slices of one projection, and the gradient that a sum has: one number, expanded.
        q, k, v = draw(2, 11, 3, 2, 16).transpose(1, 3).unbind(2)
        check(notation, q, k, v, torch.ones(1, 1, 1, 1).expand(2, 2, 11, 16))


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1.7])
def test_any_scale(scale):
    check("local:9+strided:4", *make_inputs(1, 1, 21, 16, 16), scale=scale)


def test_same_inputs_same_bits():
    inputs = make_inputs(1, 1, 37, 16, 16)
    first, second = (run(attend, "local:9+strided:4+summary:7:2", *inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("notation", ["local:7", "strided:5", "fixed:8:2", "local:4+strided:6"])
def test_nothing_leaks(notation):
    T, query = 37, 23
    q, k, v, d_out = make_inputs(1, 1, T, 16, 16)
    only = torch.zeros_like(d_out)
    only[:, :, query] = 1
    before, _, d_k, d_v = run(attend, notation, q, k, v, only)
    allowed = torch.from_numpy(paper_mask(notation, T)[query])
    assert not (d_k[0, 0] != 0).any(-1)[~allowed].any()
    assert torch.equal((d_v[0, 0] != 0).any(-1), allowed)
    k[:, :, query] += 1
    v[:, :, query] += 1
    after = run(attend, notation, q, k, v, only)[0]
    assert torch.equal(before[:, :, :query], after[:, :, :query])
    assert not torch.equal(before[:, :, query], after[:, :, query])


def test_large_scores_do_not_overflow():
    q, k, v, d_out = make_inputs(1, 1, 50, 16, 16)
    for notation in ("local:16+strided:8", "fixed:16:2"):
        inputs = (q * 150, k * 150, v, d_out)
        found = run(attend, notation, *inputs)
        exact = run(reference.attend, notation, *(x.double() for x in inputs))
        assert all(x.isfinite().all() for x in found)
        # At scores of some 1e5, float32 rounds them by some 1e-2.
        assert (found[0] - exact[0]).abs().max() < 0.1


@pytest.mark.parametrize(
    ("notation", "bad"),
    [
        ("local:7", float("nan")),
        ("strided:9", float("nan")),
        ("fixed:8:2", float("inf")),
        ("local:4+strided:9", -float("inf")),
    ],
)
def test_bad_numbers_reach_only_who_may_see_them(notation, bad):
    T, at = 23, 9
    clean = make_inputs(1, 1, T, 16, 16)
    expected = run(attend, notation, *clean)
    sees = torch.from_numpy(paper_mask(notation, T))  # (queries, keys)
    for which, name in enumerate(("q", "k", "v", "d_out")):
        inputs = [x.clone() for x in clean]
        inputs[which][0, 0, at, 3] = bad
        out, d_q, d_k, d_v = run(attend, notation, *inputs)
        if name in ("q", "d_out"):
            queries = torch.arange(T) == at
        else:
            queries = sees[:, at]
        keys = sees[queries].any(0)  # a bad query gives a bad gradient to all that it sees
        for grad, clean_grad in ((d_k, expected[2]), (d_v, expected[3])):
            assert torch.equal(grad[0, 0, ~keys], clean_grad[0, 0, ~keys]), name
        assert torch.equal(d_q[0, 0, ~queries], expected[1][0, 0, ~queries]), name
        if name == "d_out":
            queries = torch.zeros(T, dtype=torch.bool)
        assert torch.equal(out[0, 0, ~queries], expected[0][0, 0, ~queries]), name
        if name == "v":
            assert not out[0, 0, queries].isfinite().all(-1).any()


def test_the_self_check_passes(monkeypatch):
    if DEVICE == "cpu":  # the interpreter is slow
        monkeypatch.setattr(self_check, "_T", 67)
    numbers = dict(device=torch.device(DEVICE), dtype=torch.float32, D=16, D_v=16)
    assert self_check.failure_of(attend, reference.attend, **numbers) is None


def test_it_says_why_it_cannot_run():
    heads = parse_layer("local:4").heads(1)
    device = torch.device(DEVICE)
    assert why_not(device, torch.float32, 64, 64, heads) is None
    assert "float64" in why_not(device, torch.float64, 64, 64, heads)
    assert "256" in why_not(device, torch.float32, 64, 256, heads)
