"""The chain: the paper's sets as comprehensions -> float64 loop -> reference -> every engine."""

import pytest
import torch

from sparse_tx import sparse_attention
from sparse_tx.errors import UserError
from tests.helpers import HEADS, ODD_LENGTHS, paper_mask

LAYERS = (
    "local:7/strided:7",
    "fixed:12:3",
    "fixed:12:3/dense/local:5/strided:4",
    "summary:6:2+local:3/block:9+strided:6",
)
# Those for GPUs have files of their own.
FAST_ENGINES = ("views", "cpu")


def make_inputs(B, H, T, D, D_v, dtype=torch.float64, layout="BTHD", seed=0):
    """q, k, v and a gradient of the output, ``(B, H, T, D)`` in either memory layout."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width):
        if layout == "BTHD":
            x = torch.randn(B, T, H, width, generator=generator, dtype=torch.float64)
            return x.to(dtype).transpose(1, 2)
        x = torch.randn(B, H, T, width, generator=generator, dtype=torch.float64)
        return x.to(dtype)

    return draw(D), draw(D), draw(D_v), draw(D_v)


def run(engine, pattern, q, k, v, d_out):
    """The output and the three gradients."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out = sparse_attention(q, k, v, pattern, engine=engine)
    out.backward(d_out)
    return [out.detach(), q.grad, k.grad, v.grad]


def largest_error(found, expected):
    """The largest difference of all tensors; NaN if any is."""
    errors = [(a - b).abs().max() for a, b in zip(found, expected, strict=True)]
    return torch.stack(errors).max().item()  # Python's max would pass over a NaN


def attend_by_loop(q, k, v, masks):
    """Softmax over each query's own list of keys, as one would write it on paper."""
    out = torch.zeros(v.shape, dtype=v.dtype)
    B, H, T, D = q.shape
    for b in range(B):
        for h in range(H):
            for i in range(T):
                keys = masks[h][i].nonzero()[0]
                if len(keys):
                    weights = torch.softmax(k[b, h, keys] @ q[b, h, i] / D**0.5, dim=0)
                    out[b, h, i] = weights @ v[b, h, keys]
    return out


@pytest.mark.parametrize("pattern", [*HEADS, *LAYERS])
def test_reference_equals_the_loop(pattern):
    B, H, T, D, D_v = 2, 4, 29, 3, 5
    q, k, v, _ = make_inputs(B, H, T, D, D_v)
    groups = pattern.split("/")
    masks = [paper_mask(groups[h * len(groups) // H], T, head=h) for h in range(H)]
    found = sparse_attention(q, k, v, pattern, engine="reference")
    assert largest_error([found], [attend_by_loop(q, k, v, masks)]) < 1e-14


@pytest.mark.parametrize("engine", FAST_ENGINES)
@pytest.mark.parametrize("pattern", [*HEADS, *LAYERS])
@pytest.mark.parametrize("T", ODD_LENGTHS)
def test_engines_equal_the_reference(engine, pattern, T):
    inputs = make_inputs(B=2, H=4, T=T, D=3, D_v=5)
    found, expected = run(engine, pattern, *inputs), run("reference", pattern, *inputs)
    assert largest_error(found, expected) < 1e-12


@pytest.mark.parametrize("engine", FAST_ENGINES)
@pytest.mark.parametrize(
    "pattern",
    [
        "local:130",
        "local:300",
        "strided:3",
        "strided:130",
        "block:200",
        "fixed:128:32",
        "fixed:150:7",
        "local:130+strided:60",
        "block:100+strided:50+summary:100:9",
        "local:40+summary:64:5",
    ],
)
def test_engines_equal_the_reference_over_many_tiles(engine, pattern):
    inputs = make_inputs(B=1, H=2, T=701, D=5, D_v=5)
    found, expected = run(engine, pattern, *inputs), run("reference", pattern, *inputs)
    assert largest_error(found, expected) < 1e-12


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_many_heads_and_batch_entries_are_computed_in_pieces(engine):
    inputs = make_inputs(B=5, H=14, T=263, D=2, D_v=3)
    for pattern in ("local:64/strided:8", "strided:16", "fixed:32:4"):
        found, expected = run(engine, pattern, *inputs), run("reference", pattern, *inputs)
        assert largest_error(found, expected) < 1e-12


@pytest.mark.parametrize("engine", FAST_ENGINES)
@pytest.mark.parametrize("layout", ["BTHD", "BHTD"])
def test_any_strides(engine, layout):
    inputs = make_inputs(B=2, H=3, T=41, D=5, D_v=5, layout=layout)
    for pattern in ("local:9", "strided:9", "fixed:8:2"):
        found, expected = run(engine, pattern, *inputs), run("reference", pattern, *inputs)
        assert largest_error(found, expected) < 1e-12
    # Slices of one projection, as a model makes them, and an expanded gradient.
    qkv = torch.randn(2, 41, 3, 3, 5, dtype=torch.float64, requires_grad=True)
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    grads = []
    for name in (engine, "reference"):
        sparse_attention(q, k, v, "local:9+strided:4", engine=name).sum().backward()
        grads.append(qkv.grad.clone())
        qkv.grad = None
    assert largest_error(grads[:1], grads[1:]) < 1e-12


@pytest.mark.parametrize("engine", FAST_ENGINES)
@pytest.mark.parametrize("pattern", ["local:100", "strided:16", "fixed:64:8", "local:64+strided:8"])
def test_precision(engine, pattern):
    exact = run("reference", pattern, *make_inputs(B=1, H=2, T=300, D=16, D_v=16))
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 4e-2)):
        inputs = make_inputs(B=1, H=2, T=300, D=16, D_v=16, dtype=dtype)
        # What the inputs lose by rounding is no fault of the engine: both start from the rounded.
        rounded = run("reference", pattern, *(x.double() for x in inputs))
        found = run(engine, pattern, *inputs)
        assert all(x.dtype == dtype for x in found)
        scale = max(x.abs().max().item() for x in exact)
        assert largest_error([x.double() for x in found], rounded) < tolerance * scale


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_large_scores_do_not_overflow(engine):
    q, k, v, d_out = make_inputs(B=1, H=1, T=150, D=4, D_v=4, dtype=torch.float32)
    inputs = (q * 300, k * 300, v, d_out)
    for pattern in ("local:64", "strided:4", "local:16+strided:16"):
        found = run(engine, pattern, *inputs)
        expected = run("reference", pattern, *(x.double() for x in inputs))
        assert all(x.isfinite().all() for x in found)
        # At scores of some 1e5, float32 rounds them by some 1e-2.
        assert largest_error([found[0].double()], expected[:1]) < 0.1


@pytest.mark.parametrize("engine", ("reference", *FAST_ENGINES))
@pytest.mark.parametrize("pattern", HEADS)
def test_forbidden_keys_have_no_gradient(engine, pattern):
    T, query = 37, 23
    q, k, v, _ = make_inputs(B=1, H=1, T=T, D=3, D_v=3)
    k.requires_grad_()
    v.requires_grad_()
    sparse_attention(q, k, v, pattern, engine=engine)[0, 0, query].sum().backward()
    allowed = torch.from_numpy(paper_mask(pattern, T)[query])
    for grad in (k.grad, v.grad):
        touched = (grad[0, 0] != 0).any(-1)
        assert not (touched & ~allowed).any()
    assert ((v.grad[0, 0] != 0).any(-1) == allowed).all()


@pytest.mark.parametrize("engine", ("reference", *FAST_ENGINES))
@pytest.mark.parametrize("pattern", HEADS)
def test_a_later_key_changes_no_earlier_bit(engine, pattern):
    q, k, v, _ = make_inputs(B=1, H=2, T=67, D=3, D_v=3, dtype=torch.float32)
    before = sparse_attention(q, k, v, pattern, engine=engine)
    for t in (0, 1, 30, 66):
        k2, v2 = k.clone(), v.clone()
        k2[:, :, t] += 1
        v2[:, :, t] += 1
        after = sparse_attention(q, k2, v2, pattern, engine=engine)
        assert torch.equal(before[:, :, :t], after[:, :, :t])


def test_gradients_by_finite_differences():
    for pattern in ("local:3+strided:4", "fixed:4:1", "summary:5:2"):
        q, k, v, _ = make_inputs(B=1, H=2, T=11, D=2, D_v=3)
        inputs = tuple(x.requires_grad_() for x in (q, k, v))
        assert torch.autograd.gradcheck(
            lambda q, k, v, pattern=pattern: sparse_attention(q, k, v, pattern, engine="views"),
            inputs,
        )


def test_the_scale_is_an_argument():
    q, k, v, _ = make_inputs(B=1, H=1, T=50, D=4, D_v=4)
    found = sparse_attention(q, k, v, "local:9", scale=0.3)
    expected = sparse_attention(q * (0.3 * 2), k, v, "local:9")  # 1 / sqrt(4) is the default
    assert largest_error([found], [expected]) < 1e-14


@pytest.mark.parametrize("engine", FAST_ENGINES)
@pytest.mark.parametrize("pattern", ["dense", "local:9"])
@pytest.mark.parametrize("scale", [-1.0, 0.0, 1e-300])
def test_any_finite_scale(engine, pattern, scale):
    for dtype in (torch.float32, torch.float64):
        q, k, v, _ = (x.to(dtype) for x in make_inputs(B=1, H=1, T=50, D=8, D_v=8))
        found = sparse_attention(q, k, v, pattern, engine=engine, scale=scale)
        expected = sparse_attention(q, k, v, pattern, engine="reference", scale=scale)
        assert largest_error([found], [expected]) < 1e-5


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_second_derivatives_are_refused(engine):
    q, k, v, _ = make_inputs(B=1, H=2, T=30, D=4, D_v=4)
    q.requires_grad_()
    out = sparse_attention(q, k, v, "local:9/fixed:8:3", engine=engine)
    (d_q,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    assert d_q.requires_grad
    with pytest.raises(UserError, match="engine='reference'"):
        (d_q**2).sum().backward()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pattern", [*HEADS, *LAYERS])
def test_engines_equal_the_reference_on_cuda(pattern):
    inputs = make_inputs(B=2, H=4, T=263, D=16, D_v=16)
    expected = run("reference", pattern, *inputs)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.bfloat16, 1e-1)):
        found = run("views", pattern, *(x.to("cuda", dtype) for x in inputs))
        assert largest_error([x.cpu().double() for x in found], expected) < tolerance
