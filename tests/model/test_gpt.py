"""The decoder against the paper: shapes, counts, initial weights, causality, and its options."""

from dataclasses import replace
from math import log

import pytest
import torch
import torch.nn.functional as F
import yaml

from sparse_tx.config import ModelConfig, RunConfig, preset_names, preset_text
from sparse_tx.errors import UserError
from sparse_tx.model import GPT

OPTIONS = {
    "paper": dict(),
    "half-size": dict(n_qk=12, n_ff=48),
    "modern": dict(position="rope", norm="rmsnorm", qk_norm=True, activation="relu2", bias=False),
    "grid and rotations": dict(position="grid+rope", qk_norm=True),
    "swiglu tied table": dict(activation="swiglu", tie_embeddings=True, position="table"),
    "no positions": dict(position="none"),
    "recent tokens": dict(recent_tokens=4),
}


def make_model(seed=0, **settings):
    """A small model whose head is not zero, so that outputs depend on everything before."""
    torch.manual_seed(seed)
    defaults = dict(vocab_size=17, seq_len=31, n_layer=3, n_head=2, n_embd=24, init="paper-code")
    model = GPT(ModelConfig(**defaults | dict(pattern="local:5,strided:5") | settings))
    torch.nn.init.normal_(model.head_weight)
    return model


def draw_tokens(B=3, T=31, V=17, seed=1):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("enwik8-paper", 94.95), ("cifar10-paper", 59.20), ("imagenet64-paper", 151.65)],
)
def test_parameter_counts_of_the_paper(preset, millions):
    config = RunConfig.from_flat(yaml.safe_load(preset_text(preset))).model
    with torch.device("meta"):
        model = GPT(config)
    assert round(model.n_parameters() / 1e6, 2) == millions


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_shapes_and_gradients(settings):
    model = make_model(**settings)
    tokens = draw_tokens()
    assert model(tokens).shape == (3, 31, 17)
    assert model(tokens[:, :1]).shape == (3, 1, 17)
    model.loss(tokens, draw_tokens(seed=2)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    if settings.get("activation") != "relu2":
        assert all((p.grad != 0).any() for p in model.parameters())


@pytest.mark.parametrize("preset", preset_names())
def test_a_later_byte_changes_no_earlier_bit(preset):
    """The presets' own patterns and options, at a size that a test can afford."""
    full = RunConfig.from_flat(yaml.safe_load(preset_text(preset))).model
    T = 300
    config = replace(
        full,
        seq_len=T,
        n_layer=4,
        n_embd=8 * full.n_head,
        n_qk=4 * full.n_head if full.n_qk else None,
        n_ff=None,
        position_shape=(),
        init="paper-code",
        recompute=False,
    )
    torch.manual_seed(0)
    model = GPT(config).eval()
    torch.nn.init.normal_(model.head_weight)
    tokens = draw_tokens(B=1, T=T, V=256)
    with torch.no_grad():
        before = model(tokens)
        for t in (0, 1, 127, 128, 255, 299):
            changed = tokens.clone()
            changed[0, t] = (changed[0, t] + 1) % 256
            after = model(changed)
            assert torch.equal(before[:, :t], after[:, :t])
            assert not torch.equal(before[:, t], after[:, t])


def test_every_earlier_byte_arrives():
    """Local and strided together connect every pair: the last output feels each input."""
    model = make_model(n_layer=2)
    embedded = model.token_embedding(draw_tokens(B=1)).detach().requires_grad_()
    model.token_embedding.forward = lambda tokens: embedded
    model(draw_tokens(B=1))[0, -1].sum().backward()
    assert (embedded.grad[0] != 0).any(-1).all()


def test_untrained_loss_is_uniform():
    for init in ("paper", "paper-code", "zero-out"):
        model = GPT(ModelConfig(vocab_size=17, seq_len=31, n_embd=24, n_head=2, init=init))
        loss = model.loss(draw_tokens(), draw_tokens(seed=2))
        assert loss.item() == pytest.approx(3 * 31 * log(17), rel=1e-6)


@pytest.mark.parametrize("init", ["paper", "paper-code", "zero-out"])
def test_initial_standard_deviations(init):
    C, N = 256, 8
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=N, n_embd=C, n_head=4, seq_len=1024, init=init))
    block = model.blocks[3]

    def expected(fan_in):
        return 0.125 / fan_in**0.5 if init == "paper" else (0.125 / fan_in) ** 0.5

    def check(weight, std):
        assert weight.std().item() == pytest.approx(std, rel=0.03)
        assert abs(weight.mean().item()) < 0.03 * std

    check(model.token_embedding.weight, 1 if init == "zero-out" else 0.125 / C**0.5)
    for table in model.positions.tables:
        assert table.std().item() == pytest.approx(0.125 / (C * 2) ** 0.5, rel=0.1)
    check(block.attention.to_qkv.weight, expected(C))
    check(block.feed_forward.expand.weight, expected(C))
    if init == "zero-out":
        assert not block.attention.to_out.weight.any()
        assert not block.feed_forward.to_out.weight.any()
    else:
        check(block.attention.to_out.weight, expected(C) / (2 * N) ** 0.5)
        check(block.feed_forward.to_out.weight, expected(4 * C) / (2 * N) ** 0.5)
    assert not model.head.weight.any()
    biases = [p for name, p in model.named_parameters() if "to_" in name and "bias" in name]
    assert len(biases) == 3 * N  # to_qkv and to_out of attention, to_out of the feed-forward
    assert not any(p.any() for p in biases)


def test_the_block_is_the_papers():
    """a = dropout(attn(norm(x))); b = dropout(ff(norm(x + a))); x + a + b."""
    model = make_model().double().eval()
    block = model.blocks[0]
    x = torch.randn(2, 31, 24, dtype=torch.float64)
    a = block.attention(F.layer_norm(x, (24,)))
    hidden = block.feed_forward.expand(F.layer_norm(x + a, (24,)))
    b = block.feed_forward.to_out(hidden * torch.sigmoid(1.702 * hidden))
    assert (block(x) - (x + a + b)).abs().max() < 1e-12


def test_grid_positions_are_row_and_column():
    model = make_model(seq_len=31, pattern="strided:7")
    rows, columns = model.positions.tables
    assert (rows.shape, columns.shape) == ((5, 24), (7, 24))
    found = model.positions(31)
    for t in range(31):
        assert torch.equal(found[t], rows[t // 7] + columns[t % 7])


def test_grid_of_an_image_has_row_column_channel():
    config = ModelConfig(seq_len=24, position_shape=(2, 4, 3), n_embd=8, n_head=2)
    model = GPT(config)
    rows, columns, channels = model.positions.tables
    assert torch.equal(model.positions(24)[17], rows[1] + columns[1] + channels[2])


def test_rotary_products_depend_on_distance_only():
    from sparse_tx.model.positions import rotate

    q = torch.randn(8, dtype=torch.float64).expand(1, 50, 1, 8)
    k = torch.randn(8, dtype=torch.float64).expand(1, 50, 1, 8)
    products = torch.einsum("bihd,bjhd->ij", rotate(q), rotate(k))
    for distance in (0, 1, 7):
        diagonal = products.diagonal(-distance)
        assert (diagonal - diagonal[0]).abs().max() < 1e-5
    assert (products.diagonal(-1)[0] - products.diagonal(-7)[0]).abs() > 1e-3


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_chunks_change_nothing(settings):
    whole, pieces = make_model(**settings).double(), make_model(chunk=8, **settings).double()
    tokens, targets = draw_tokens(), draw_tokens(seed=2)
    losses = [model.loss(tokens, targets) for model in (whole, pieces)]
    expected = F.cross_entropy(whole(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    # The loss is summed in float32 whatever the model computes in.
    assert losses[0].item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses[1].item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    reference = [p.grad.clone() for p in whole.parameters()]
    whole.zero_grad()
    for model, loss in zip((whole, pieces), losses, strict=True):
        loss.backward()
        for p, expected_grad in zip(model.parameters(), reference, strict=True):
            scale = expected_grad.abs().max().item() + 1e-9
            assert (p.grad - expected_grad).abs().max().item() < 1e-5 * scale


@pytest.mark.parametrize("engine", ["auto", "views", "reference"])
def test_recomputed_blocks_repeat_their_dropout(engine):
    kept = make_model(dropout=0.3, engine=engine)
    recomputed = make_model(dropout=0.3, engine=engine, recompute=True)
    tokens, targets = draw_tokens(), draw_tokens(seed=2)
    for model in (kept, recomputed):
        torch.manual_seed(5)
        model.loss(tokens, targets).backward()
    for a, b in zip(kept.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert kept.loss(tokens, targets).item() != kept.eval().loss(tokens, targets).item()


def test_attention_weights_are_never_dropped_and_branches_are():
    model = make_model(dropout=0.5)
    model.train()
    torch.manual_seed(0)
    x = torch.randn(1, 31, 24)
    attention = model.blocks[0].attention
    assert torch.equal(attention(x), attention(x))
    assert not torch.equal(model.blocks[0](x), model.blocks[0](x))


def test_tied_head_shares_the_embedding():
    model = GPT(ModelConfig(vocab_size=17, n_embd=8, n_head=2, tie_embeddings=True))
    assert model.head_weight.data_ptr() == model.token_embedding.weight.data_ptr()
    assert model.head_weight.shape == (17, 8)


def test_more_tokens_than_the_context_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match="32 tokens at once; the model's seq_len is 31"):
        model(draw_tokens(T=32))


def test_recent_tokens_are_summed_from_their_own_tables():
    model = make_model(recent_tokens=3, n_layer=1, position="none")
    tokens = draw_tokens(B=1)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.append(inputs[0]))
    model(tokens)
    tables = [model.token_embedding, *model.earlier_embeddings]
    text = [17, 17, *tokens[0].tolist()]  # before the text stands the start symbol
    for t in range(31):
        expected = sum(tables[back].weight[text[t + 2 - back]] for back in range(3))
        assert torch.allclose(seen[0][0, t], expected, atol=1e-7)


def test_mixed_precision_runs_and_stays_near():
    model = make_model(position="rope", qk_norm=True, activation="relu2")
    tokens, targets = draw_tokens(), draw_tokens(seed=2)
    exact = model.loss(tokens, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.loss(tokens, targets)
    mixed.backward()
    assert mixed.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_what_inference_computed_first_serves_training():
    """Tables kept from inference must not be inference tensors, which have no backward pass."""
    model = make_model(position="rope", seq_len=23)
    with torch.inference_mode():
        model(draw_tokens(T=23))
    model.loss(draw_tokens(T=23), draw_tokens(T=23)).backward()


def test_the_engine_is_that_of_where_the_model_is_and_what_it_computes_in(monkeypatch):
    from sparse_tx.model import gpt

    asked = {}
    monkeypatch.setattr(gpt, "resolve_engine", lambda engine, **inputs: asked.update(inputs))
    config = ModelConfig(n_head=2, n_embd=12, n_qk=8, seq_len=16, pattern="local:4,strided:4")
    model = GPT(config)
    model.engine()
    assert asked["device"] == torch.device("cpu")
    assert (asked["dtype"], asked["D"], asked["D_v"]) == (torch.float32, 4, 6)
    assert "/".join(map(str, asked["heads"])) == "local:4/local:4/strided:4/strided:4"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.engine()
    assert asked["dtype"] == torch.bfloat16


def test_a_model_for_another_device_can_be_built_here():
    model = GPT(ModelConfig(engine="triton"))
    with pytest.raises(UserError, match="'triton' cannot run here"):
        model.engine()
    with pytest.raises(UserError, match=r"unknown attention engine 'tritone': did you mean"):
        GPT(ModelConfig(engine="tritone"))
