"""Blocks that take some heads and a chunk of tokens at a time, against blocks as they are."""

from contextlib import nullcontext

import pytest
import torch

from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError
from sparse_tx.model import GPT

# Three heads of three patterns, so that no group of heads could pass for another.
SIZES = dict(
    vocab_size=17,
    seq_len=31,
    n_layer=3,
    n_head=3,
    n_embd=30,
    init="paper-code",
    pattern="local:5/strided:5/fixed:7:2,dense",
)
OPTIONS = {
    "paper": dict(),
    "half-size": dict(n_qk=12, n_ff=37),
    "modern": dict(position="rope", norm="rmsnorm", qk_norm=True, activation="relu2", bias=False),
    "swiglu tied": dict(activation="swiglu", tie_embeddings=True, position="grid+rope"),
    "recent tokens": dict(recent_tokens=3, position="none", qk_norm=True),
}
B, T, V = 3, 31, 17


def draw_tokens(seed=1):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


def make_model(dtype=torch.float64, **settings):
    """A model whose head is not zero, so that gradients are not."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(**SIZES | settings))
    torch.nn.init.normal_(model.head_weight)
    return model.to(dtype)


def loss_and_gradients(model, seed=5):
    torch.manual_seed(seed)
    model.zero_grad()
    loss = model.loss(draw_tokens(), draw_tokens(seed=2))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


def assert_alike(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("head_chunk", [1, 2, 3, 7])
@pytest.mark.parametrize("chunk", [8, 10_000])
def test_heads_and_chunks_change_nothing(settings, head_chunk, chunk):
    loss, gradients = loss_and_gradients(make_model(**settings))
    long = make_model(head_chunk=head_chunk, chunk=chunk, **settings)
    found_loss, found = loss_and_gradients(long)
    assert found_loss == pytest.approx(loss, rel=1e-6)  # summed in float32
    assert_alike(found, gradients, 1e-12)


@pytest.mark.parametrize("engine", ["reference", "views", "cpu"])
def test_every_engine_takes_heads_in_groups(engine):
    _, gradients = loss_and_gradients(make_model(engine="reference"))
    _, found = loss_and_gradients(make_model(engine=engine, head_chunk=2, chunk=8))
    assert_alike(found, gradients, 1e-12)


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_float32_differs_by_rounding_only(settings):
    _, exact = loss_and_gradients(make_model(**settings))
    _, plain = loss_and_gradients(make_model(dtype=torch.float32, **settings))
    long = make_model(dtype=torch.float32, head_chunk=1, chunk=8, **settings)
    _, found = loss_and_gradients(long)
    assert_alike(plain, exact, 1e-5)
    assert_alike(found, exact, 1e-5)


def rounded(x):
    return x + (x.bfloat16().to(x) - x).detach()


class AtRoundedInput(torch.nn.Module):
    """A block whose value is that of its input, and whose gradient that of its input in bf16."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        y = self.block(rounded(x))
        with torch.no_grad():
            exact = self.block(x)
        return y + (exact - y).detach()


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_bf16_rounds_where_gradients_are_taken_and_nothing_else(settings):
    at_rounded = make_model(**settings)
    at_rounded.blocks = torch.nn.ModuleList(map(AtRoundedInput, at_rounded.blocks))
    loss, gradients = loss_and_gradients(at_rounded)
    long = make_model(head_chunk=1, chunk=8, stored_precision="bf16", **settings)
    found_loss, found = loss_and_gradients(long)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert_alike(found, gradients, 1e-12)


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_bf16_changes_gradients_by_no_more_than_its_rounding(settings):
    """8 bits round a number by at most 2^-9 of it. A gradient is a product of what is forward and
    what comes backward, both of which each of the blocks can shift by a multiple of that; here the
    multiple is taken as 2 for the pair."""
    exact_loss, exact = loss_and_gradients(make_model(head_chunk=1, **settings))
    long = make_model(head_chunk=1, stored_precision="bf16", **settings)
    loss, found = loss_and_gradients(long)
    assert loss == exact_loss
    assert_alike(found, exact, 2 * SIZES["n_layer"] * 2**-9)
    assert any(not torch.equal(a, b) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("stored_precision", ["fp32", "bf16"])
def test_one_chunk_drops_what_the_block_as_it_is_drops(stored_precision):
    settings = dict(dropout=0.3, recompute=True)
    loss, gradients = loss_and_gradients(make_model(**settings))
    long = make_model(head_chunk=1, stored_precision=stored_precision, **settings)
    found_loss, found = loss_and_gradients(long)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert_alike(found, gradients, 1e-12 if stored_precision == "fp32" else 6 * 2**-9)


def test_chunks_repeat_their_dropout():
    """The gradient is that of the loss which these very random numbers give."""
    model = make_model(dropout=0.3, head_chunk=2, chunk=8)
    tokens, targets = draw_tokens(), draw_tokens(seed=2)
    weights = list(model.parameters())
    directions = [torch.randn_like(w) for w in weights]

    def loss_at(step):
        torch.manual_seed(5)
        with torch.no_grad():
            for w, direction in zip(weights, directions, strict=True):
                w += step * direction
            loss = model.loss(tokens, targets).item()
            for w, direction in zip(weights, directions, strict=True):
                w -= step * direction
        return loss

    _, gradients = loss_and_gradients(model)
    slope = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
    assert (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_random_numbers_go_on_as_if_nothing_was_computed_again():
    model = make_model(dropout=0.3, head_chunk=2, chunk=8)
    torch.manual_seed(5)
    loss = model.loss(draw_tokens(), draw_tokens(seed=2))
    expected = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    plain, long = make_model().eval(), make_model(head_chunk=1, chunk=8).eval()
    with mode():
        assert torch.allclose(long(draw_tokens()), plain(draw_tokens()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", ["to_qkv", "norm", "feed_forward", "embedding"])
def test_weights_that_do_not_train(frozen):
    plain, long = make_model(), make_model(head_chunk=2, chunk=8)
    for model in (plain, long):
        for name, p in model.named_parameters():
            p.requires_grad_(frozen not in name)
        model.loss(draw_tokens(), draw_tokens(seed=2)).backward()
    for a, b in zip(long.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            assert (a.grad - b.grad).norm() <= 1e-12 * b.grad.norm()


def test_gradients_add_up_over_batches():
    model = make_model(head_chunk=2, chunk=8)
    _, once = loss_and_gradients(model)
    model.loss(draw_tokens(), draw_tokens(seed=2)).backward()
    assert_alike([p.grad for p in model.parameters()], [2 * g for g in once], 1e-12)


def test_a_sum_of_hidden_states_is_differentiated_too():
    """Its gradient is one number that stands for all, which nobody may write on."""
    plain, long = make_model(norm="rmsnorm"), make_model(norm="rmsnorm", head_chunk=2)
    for model in (plain, long):
        model.final_norm = torch.nn.Identity()
        model.hidden(draw_tokens()).sum().backward()
    for a, b in zip(long.blocks.parameters(), plain.blocks.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 1e-12 * b.grad.norm()


def test_under_autocast_every_weight_gets_its_gradient():
    """Blocks are computed without gradients first, of which nothing may be left for the second."""
    plain = make_model(dtype=torch.float32, **OPTIONS["modern"])
    settings = OPTIONS["modern"] | dict(head_chunk=1, chunk=8)
    long = make_model(dtype=torch.float32, **settings)
    found = []
    for model in (plain, long):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model.loss(draw_tokens(), draw_tokens(seed=2))
        loss.backward()
        found.append([p.grad for p in model.parameters()])
    assert_alike(found[1], found[0], 0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_on_a_gpu(precision, dropout):
    half = precision == torch.bfloat16
    found = []
    for settings in (dict(recompute=True), dict(head_chunk=1)):
        model = make_model(dtype=torch.float32, engine="views", dropout=dropout, **settings).cuda()
        torch.manual_seed(5)
        with torch.autocast("cuda", dtype=precision) if half else nullcontext():
            loss = model.loss(draw_tokens().cuda(), draw_tokens(seed=2).cuda())
        loss.backward()
        found.append([p.grad for p in model.parameters()])
    assert_alike(found[1], found[0], 0.05 if half else 1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(head_chunk=0), "head_chunk is 0; it must be 1 or more"),
        (dict(stored_precision="bf16"), "stored_precision is bf16, which head_chunk alone"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**settings)
