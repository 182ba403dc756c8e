"""Attention without the triangle: float64 loop -> reference -> views, forward and gradients."""

import pytest
import torch

import sparse_tx.attention.views.groups as groups
from sparse_tx import sparse_attention
from sparse_tx.errors import UserError
from tests.attention.test_engines import attend_by_loop, largest_error, make_inputs
from tests.helpers import MAP_HEADS, two_sided_mask

LAYERS = ("rows:5/columns:5", "crisscross:7/tiles:7:3/summary:6:2/dense")
LENGTHS = (1, 2, 13, 35, 63, 100)


def run(engine, pattern, q, k, v, d_out, **options):
    """The output and the three gradients."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out = sparse_attention(q, k, v, pattern, engine=engine, causal=False, **options)
    out.backward(d_out)
    return [out.detach(), q.grad, k.grad, v.grad]


@pytest.mark.parametrize("pattern", [*MAP_HEADS, *LAYERS])
def test_reference_equals_the_loop(pattern):
    B, H, T = 2, 4, 29
    q, k, v, _ = make_inputs(B, H, T, 3, 5)
    parts = pattern.split("/")
    masks = [two_sided_mask(parts[h * len(parts) // H], T, head=h) for h in range(H)]
    found = sparse_attention(q, k, v, pattern, engine="reference", causal=False)
    assert largest_error([found], [attend_by_loop(q, k, v, masks)]) < 1e-13


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("pattern", [*MAP_HEADS, *LAYERS])
def test_views_equal_the_reference(pattern, T):
    inputs = make_inputs(2, 4, T, 3, 5, layout="BTHD" if T % 2 else "BHTD")
    expected = run("reference", pattern, *inputs)
    assert largest_error(run("views", pattern, *inputs), expected) < 1e-12


@pytest.mark.parametrize("scores", [1, 64, 1000])
@pytest.mark.parametrize("pattern", ["dense", "crisscross:7", "local:9+columns:7", "summary:8:2"])
def test_groups_cut_in_any_way(pattern, scores, monkeypatch):
    monkeypatch.setattr(groups, "SCORES", scores)
    monkeypatch.setattr("sparse_tx.attention.views.two_sided.SCORES", scores)
    inputs = make_inputs(2, 3, 77, 3, 5)  # values of another width: no fused kernel
    expected = run("reference", pattern, *inputs)
    assert largest_error(run("views", pattern, *inputs), expected) < 1e-12


@pytest.mark.parametrize("pattern", MAP_HEADS)
def test_every_pair_is_in_one_group_once(pattern):
    from sparse_tx.patterns import parse_layer

    T, found = 63, torch.zeros(63, 63, dtype=torch.int)
    for group in groups.groups_of(parse_layer(pattern).at(0, 1), T, 1, torch.device("cpu")):
        for g in range(len(group.queries)):
            q, k = group.queries[g][:, None], group.keys[g][None]
            live = torch.ones(len(q), k.shape[1], dtype=torch.int)
            if group.bias is not None:
                live = (group.bias[min(g, len(group.bias) - 1)] == 0).int()
            found[q, k] += live
    assert torch.equal(found, torch.from_numpy(two_sided_mask(pattern, T)).int())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    inputs = make_inputs(2, 2, 63, 8, 8, dtype=dtype)
    expected = run("reference", "crisscross:7", *(x.double() for x in inputs))
    found = run("views", "crisscross:7", *inputs)
    assert all(x.dtype == dtype for x in found)
    tolerance = 4 * torch.finfo(dtype).eps
    for mine, theirs in zip(found, expected, strict=True):
        assert largest_error([mine.double()], [theirs]) < tolerance * theirs.abs().max()


def test_large_scores_stay_finite():
    q, k, v, d_out = make_inputs(1, 2, 63, 8, 8)
    for factor in (1e3, 1e17):  # scores beyond what stands for none of a row without keys
        inputs = (q * factor, k * factor, v, d_out)
        expected = run("reference", "rows:7+lattice:7:2", *inputs)
        found = run("views", "rows:7+lattice:7:2", *inputs)
        assert largest_error(found[:1], expected[:1]) < 1e-9
        assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["crisscross:7", "local:4", "summary:8:2"])
def test_autocast_changes_nothing(pattern, dtype):
    inputs = make_inputs(2, 2, 35, 8, 8, dtype=dtype)
    expected = run("views", pattern, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run("views", pattern, *inputs)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == dtype and torch.equal(mine, theirs)


def test_long_windows_take_no_square_of_positions():
    T, window = 1 << 14, 1 << 12
    (position,) = (torch.arange(T),)
    for _, keys in groups._windows(window, position):
        assert keys.untyped_storage().data_ptr() == position.untyped_storage().data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pattern", MAP_HEADS)
def test_views_equal_the_reference_on_cuda(pattern):
    inputs = make_inputs(2, 4, 263, 16, 16)
    expected = run("reference", pattern, *inputs)
    found = run("views", pattern, *(x.to("cuda") for x in inputs))
    assert largest_error([x.cpu() for x in found], expected) < 1e-11


@pytest.mark.parametrize("engine", ["reference", "views"])
@pytest.mark.parametrize("pattern", MAP_HEADS)
def test_forbidden_keys_have_no_gradient(engine, pattern):
    T, query = 37, 23
    q, k, v, _ = make_inputs(B=1, H=1, T=T, D=3, D_v=3)
    k.requires_grad_()
    v.requires_grad_()
    out = sparse_attention(q, k, v, pattern, engine=engine, causal=False)
    out[0, 0, query].sum().backward()
    allowed = torch.from_numpy(two_sided_mask(pattern, T)[query])
    assert not ((k.grad[0, 0] != 0).any(-1) & ~allowed).any()
    assert ((v.grad[0, 0] != 0).any(-1) == allowed).all()


def test_gradients_by_finite_differences():
    inputs = tuple(x.requires_grad_() for x in make_inputs(1, 2, 12, 2, 3)[:3])
    for pattern in ("crisscross:4", "tiles:4:2/lattice:4:2", "local:2+summary:4:1"):

        def attend(q, k, v, pattern=pattern):
            return sparse_attention(q, k, v, pattern, engine="views", causal=False)

        assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("pattern", ["dense", "tiles:5:2"])
def test_any_scale(pattern, scale):
    inputs = make_inputs(1, 2, 35, 4, 4)
    expected = run("reference", pattern, *inputs, scale=scale)
    assert largest_error(run("views", pattern, *inputs, scale=scale), expected) < 1e-12


def test_rows_and_columns_are_dense_attention_on_views():
    """``(B, H, W)`` maps: rows are batches of W positions, columns batches of H."""
    B, n_head, H, W, D = 2, 3, 7, 5, 4
    q, k, v, _ = make_inputs(B, n_head, H * W, D, D, layout="BHTD")
    as_map = [x.reshape(B, n_head, H, W, D) for x in (q, k, v)]
    rows = torch.nn.functional.scaled_dot_product_attention(*as_map)
    found = sparse_attention(q, k, v, f"rows:{W}", causal=False)
    assert largest_error([found], [rows.reshape(q.shape)]) < 1e-14
    upright = [x.transpose(2, 3) for x in as_map]
    columns = torch.nn.functional.scaled_dot_product_attention(*upright)
    found = sparse_attention(q, k, v, f"columns:{W}", causal=False)
    assert largest_error([found], [columns.transpose(2, 3).reshape(q.shape)]) < 1e-14


def test_the_engine_is_views_unless_named():
    q, k, v, _ = make_inputs(1, 1, 8, 2, 2)
    for engine in ("cpu", "flex", "triton"):
        with pytest.raises(UserError, match=f"'{engine}' is causal only; without the triangle"):
            sparse_attention(q, k, v, "rows:4", engine=engine, causal=False)
    with pytest.raises(UserError, match="'tiles:4:2' has no causal form"):
        sparse_attention(q, k, v, "tiles:4:2")


def test_second_derivatives_are_refused():
    q, k, v, _ = make_inputs(B=1, H=2, T=30, D=4, D_v=4)
    q.requires_grad_()
    out = sparse_attention(q, k, v, "crisscross:5", causal=False)
    (d_q,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(UserError, match="engine='reference'"):
        (d_q**2).sum().backward()
