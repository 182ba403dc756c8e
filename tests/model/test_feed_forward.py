"""The feed-forward whose hidden layer stays in the cache, against plain operators."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from sparse_tx.config import ModelConfig
from sparse_tx.config.model import FEED_FORWARD_TOKENS
from sparse_tx.model import block, feed_forward
from sparse_tx.model.block import FeedForward
from sparse_tx.model.feed_forward import squared_relu_feed_forward

WIDTH, HIDDEN = 13, 37


def plain(x, expand, contract):
    return F.linear(F.relu(F.linear(x, expand)).square(), contract)


def draw(*shape, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, **options)


def draw_inputs(*shape, trained=(True, True, True)):
    inputs = draw(*shape, WIDTH), draw(HIDDEN, WIDTH, seed=1), draw(WIDTH, HIDDEN, seed=2)
    return [one.requires_grad_(wanted) for one, wanted in zip(inputs, trained, strict=True)]


def with_gradients(function, inputs, d_out):
    out = function(*inputs)
    return out, *torch.autograd.grad(out, [one for one in inputs if one.requires_grad], d_out)


def assert_alike(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-12 * b.norm()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(feed_forward, "FEED_FORWARD_TOKENS", 8)


@pytest.mark.parametrize("tokens", [1, 511, 512, 513, 1023, 1024, 1025])
def test_equals_plain_operators_around_the_chunk(tokens):
    assert FEED_FORWARD_TOKENS == 512
    inputs, d_out = draw_inputs(1, tokens), draw(1, tokens, WIDTH, seed=3)
    found = with_gradients(squared_relu_feed_forward, inputs, d_out)
    assert_alike(found, with_gradients(plain, inputs, d_out))
    with torch.no_grad():
        assert torch.equal(squared_relu_feed_forward(*inputs), found[0])


@pytest.mark.parametrize("shape", [(3, 11), (31,), (2, 3, 5), (1, 0)])
def test_equals_plain_operators_in_any_shape(shape, small_chunks):
    inputs, d_out = draw_inputs(*shape), draw(*shape, WIDTH, seed=3)
    found = with_gradients(squared_relu_feed_forward, inputs, d_out)
    assert_alike(found, with_gradients(plain, inputs, d_out))


def test_pieces_of_several_sequences_are_not_contiguous(small_chunks):
    whole, *weights = draw_inputs(3, 29)
    d_whole = draw(3, 29, WIDTH, seed=3)
    inputs, d_out = [whole[:, 4:21].detach().requires_grad_(), *weights], d_whole[:, 4:21]
    assert not (inputs[0].is_contiguous() or d_out.is_contiguous())
    found = with_gradients(squared_relu_feed_forward, inputs, d_out)
    assert_alike(found, with_gradients(plain, inputs, d_out))


def test_one_number_may_stand_for_the_whole_gradient(small_chunks):
    inputs = draw_inputs(3, 11)
    found = torch.autograd.grad(squared_relu_feed_forward(*inputs).sum(), inputs)
    assert_alike(found, torch.autograd.grad(plain(*inputs).sum(), inputs))


def test_gradients_are_those_of_finite_differences(small_chunks):
    inputs = draw_inputs(19)
    assert torch.autograd.gradcheck(squared_relu_feed_forward, inputs)


@pytest.mark.parametrize("trained", list(product([False, True], repeat=3)))
def test_what_does_not_train_gets_no_gradient(trained, small_chunks):
    inputs, d_out = draw_inputs(3, 11, trained=trained), draw(3, 11, WIDTH, seed=3)
    out = squared_relu_feed_forward(*inputs)
    assert out.requires_grad == any(trained)
    if any(trained):
        out.backward(d_out)
        found = [one.grad for one in inputs if one.requires_grad]
        assert_alike(found, with_gradients(plain, inputs, d_out)[1:])
    assert all(
        (one.grad is not None) == wanted for one, wanted in zip(inputs, trained, strict=True)
    )


def test_is_differentiable_once():
    inputs = draw_inputs(5)
    (d_x,) = torch.autograd.grad(
        squared_relu_feed_forward(*inputs).square().sum(), inputs[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        d_x.sum().backward()


def test_keeps_one_tensor_of_the_hidden_width():
    kept = []
    inputs = draw_inputs(3, 11)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        squared_relu_feed_forward(*inputs)
        assert sorted(map(torch.numel, kept)) == sorted([*map(torch.numel, inputs), 33 * HIDDEN])
        kept.clear()
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                squared_relu_feed_forward(*inputs)
    assert not kept


def test_recomputation_ends_before_the_second_product(monkeypatch, small_chunks):
    products, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, **out: products.append(args) or mm(*args, **out))
    inputs, d_out = draw_inputs(8), draw(8, WIDTH, seed=3)
    out = checkpoint(squared_relu_feed_forward, *inputs, use_reentrant=False)
    assert len(products) == 2
    found = torch.autograd.grad(out, inputs, d_out)
    assert len(products) == 4  # the first again, and the gradient of the hidden layer
    assert_alike(found, with_gradients(plain, inputs, d_out)[1:])


def make_feed_forward(**settings):
    defaults = dict(n_embd=WIDTH, n_head=1, n_ff=HIDDEN, activation="relu2", bias=False)
    torch.manual_seed(0)
    return FeedForward(ModelConfig(**defaults | settings)).double()


@pytest.mark.parametrize("chunk", [8, 20, 10_000])
def test_the_model_has_it(chunk, monkeypatch, small_chunks):
    shapes = []

    def noted(x, *weights):
        shapes.append(x.shape)
        return squared_relu_feed_forward(x, *weights)

    monkeypatch.setattr(block, "squared_relu_feed_forward", noted)
    module = make_feed_forward(chunk=chunk)
    x, d_out = draw(2, 23, WIDTH).requires_grad_(), draw(2, 23, WIDTH, seed=3)
    inputs = [x, module.expand.weight, module.to_out.weight]
    found = with_gradients(lambda *_: module(x), inputs, d_out)
    assert_alike(found, with_gradients(plain, inputs, d_out))
    assert shapes[0] == (2, min(23, chunk // 2), WIDTH)


@pytest.mark.parametrize("settings", [dict(bias=True), dict(activation="gelu")], ids=str)
def test_other_kinds_go_another_way(settings, monkeypatch):
    monkeypatch.delattr(block, "squared_relu_feed_forward")
    assert make_feed_forward(**settings)(draw(1, 5, WIDTH)).shape == (1, 5, WIDTH)


def test_half_precision_goes_another_way(monkeypatch):
    """Which multiplies in its own type, and sums over all tokens at once."""
    monkeypatch.delattr(block, "squared_relu_feed_forward")
    module, x = make_feed_forward(), draw(1, 5, WIDTH)
    assert module.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.float()(x.float()).dtype == torch.bfloat16
