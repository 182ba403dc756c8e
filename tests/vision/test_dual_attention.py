"""Position and channel attention against loops, along patterns, and their weights."""

import pytest
import torch

from sparse_tx.patterns import parse_pattern
from sparse_tx.vision import ChannelAttention, PositionAttention
from tests.vision import loops
from tests.vision.helpers import assert_close, assert_gradients, draw, randomised, weights_of

SHAPE = (2, 15, 5, 7)
PATTERNS = [
    "dense",
    "rows:7",
    "columns:7",
    "crisscross:7",
    "tiles:7:3",
    "lattice:7:2",
    "local:4",
    "strided:3",
    "block:6",
    "summary:8:3",
    "fixed:8:2",
    "rows:7+lattice:7:3",
]


def step(module, x, allowed):
    weights = weights_of(module)
    projections = [
        (weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in ("query", "key", "value")
    ]
    return loops.position_step(x, *projections, weights["alpha"][0], allowed)


def test_position_attention_is_its_equation():
    module, x = randomised(PositionAttention(15, 5)), draw(*SHAPE)
    assert_close(module(x), step(module, x.numpy(), lambda i, j: True))


def same_row(i, j):
    return i // 7 == j // 7


def same_column(i, j):
    return i % 7 == j % 7


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        ("dense", lambda i, j: True),
        ("rows:7", same_row),
        ("columns:7", same_column),
        ("crisscross:7", lambda i, j: same_row(i, j) or same_column(i, j)),
        ("tiles:7:3", lambda i, j: i // 21 == j // 21 and i % 7 // 3 == j % 7 // 3),
        ("lattice:7:2", lambda i, j: i // 7 % 2 == j // 7 % 2 and i % 7 % 2 == j % 7 % 2),
        ("local:4", lambda i, j: abs(i - j) < 4),
    ],
)
def test_position_attention_along_a_pattern(pattern, allowed):
    module, x = randomised(PositionAttention(15, 5, pattern=pattern)), draw(*SHAPE)
    assert_close(module(x), step(module, x.numpy(), allowed))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_word_reads_what_it_allows(pattern):
    module, x = randomised(PositionAttention(15, 5, pattern=pattern)), draw(*SHAPE)
    head = parse_pattern(pattern).at(0, 0, 1)
    assert_close(module(x), step(module, x.numpy(), lambda i, j: head.allows(i, j, causal=False)))


@pytest.mark.parametrize(
    ("pattern", "steps"),
    [
        ("rows:7,columns:7", [same_row, same_column]),
        ("columns:7,rows:7", [same_column, same_row]),
        ("rows:7*3", [same_row] * 3),
    ],
)
def test_layers_are_applied_in_turn_with_the_same_weights(pattern, steps):
    module, x = randomised(PositionAttention(15, 5, pattern=pattern)), draw(*SHAPE)
    expected = x.numpy()
    for allowed in steps:
        expected = step(module, expected, allowed)
    assert_close(module(x), expected)


def test_rows_then_columns_carry_every_position_to_every_other():
    def influences(pattern):
        module, x = randomised(PositionAttention(15, 5, pattern=pattern)), draw(1, 15, 3, 5)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(module(x)[0, :, 2, 4].sum(), x)
        return (gradient[0] != 0).any(0)

    assert influences("rows:5,columns:5").all()
    assert influences("crisscross:5*2").all()
    assert influences("rows:5,rows:5").tolist() == [[False] * 5, [False] * 5, [True] * 5]
    assert influences("crisscross:5").sum() == 3 + 5 - 1


@pytest.mark.parametrize("pattern", [None, "dense", "crisscross:3", "rows:3,columns:3"])
def test_gradients_of_position_attention(pattern):
    module = randomised(PositionAttention(6, 3, pattern=pattern))
    assert_gradients(module, draw(2, 6, 2, 3))


@pytest.mark.parametrize("pattern", ["rows:7", "crisscross:7", "rows:7,columns:7", "tiles:7:3"])
def test_gradients_along_a_pattern_are_those_of_all_pairs_with_a_mask(pattern):
    module = randomised(PositionAttention(15, 5, pattern=pattern))
    x = draw(*SHAPE).requires_grad_()

    def masked(x):
        for layer in module.pattern.layers:
            at = torch.arange(35)
            allowed = layer.at(0, 1).allows(at[:, None], at[None, :], causal=False)
            q, k, v = (p(x).flatten(2) for p in (module.query, module.key, module.value))
            energies = (q.transpose(1, 2) @ k).masked_fill(~allowed, -torch.inf)
            out = v @ energies.softmax(2).transpose(1, 2)
            x = x + module.alpha * out.unflatten(2, x.shape[2:])
        return x

    # What the key's bias adds to a row of energies is the same for all keys: it has no gradient.
    inputs = [x, *(p for p in module.parameters() if p is not module.key.bias)]
    d_out = draw(*SHAPE, seed=3)
    found = torch.autograd.grad(module(x), inputs, d_out)
    for one, other in zip(found, torch.autograd.grad(masked(x), inputs, d_out), strict=True):
        assert_close(one, other, within=1e-11)


@pytest.mark.parametrize("form", ["reversed", "plain", "scaled"])
def test_channel_attention_is_its_equation(form):
    module, x = randomised(ChannelAttention(form)), draw(*SHAPE) / 2
    assert_close(module(x), loops.channel_step(x.numpy(), module.beta.item(), form))


@pytest.mark.parametrize("form", ["reversed", "plain", "scaled"])
def test_gradients_of_channel_attention(form):
    assert_gradients(randomised(ChannelAttention(form)), draw(2, 5, 2, 3) / 2)


@pytest.mark.parametrize("form", ["reversed", "plain", "scaled"])
def test_rows_of_channel_weights_sum_to_one(form):
    weights = ChannelAttention(form).weights_of(draw(*SHAPE))
    assert weights.shape == (2, 15, 15)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 15, dtype=torch.float64))


@pytest.mark.parametrize("form", ["reversed", "plain"])
def test_large_maps_do_not_overflow(form):
    x = 1e4 * draw(1, 7, 11, 13).abs().float()
    weights = ChannelAttention(form).weights_of(x)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(2), torch.ones(1, 7))


def test_the_plain_form_is_the_identity_on_maps_after_a_relu():
    """Why the released code reverses it: a channel is most like itself, by far."""
    x = draw(2, 15, 32, 32).relu()
    torch.testing.assert_close(
        ChannelAttention("plain").weights_of(x), torch.eye(15).double().expand(2, 15, 15)
    )
    assert ChannelAttention("reversed").weights_of(x).diagonal(dim1=1, dim2=2).max() < 1e-9


@pytest.mark.parametrize("pattern", [None, *PATTERNS])
def test_weights_of_a_position_are_its_row(pattern):
    module, x = randomised(PositionAttention(15, 5, pattern=pattern)), draw(*SHAPE)
    head = parse_pattern(pattern or "dense").at(0, 0, 1)
    v = module.value(x).flatten(2)  # (B, C, N)
    for position in (0, 17, 34):
        weights = module.weights_of(x, position).flatten(1)
        torch.testing.assert_close(weights.sum(1), torch.ones(2, dtype=torch.float64))
        allowed = [bool(head.allows(position, j, causal=False)) for j in range(35)]
        assert (weights > 0).tolist() == [allowed] * 2
        read = (v * weights[:, None]).sum(2)
        expected = x.flatten(2)[:, :, position] + module.alpha * read
        assert_close(module(x).flatten(2)[:, :, position], expected)


def test_weights_of_a_later_step_are_of_its_own_input():
    both = randomised(PositionAttention(15, 5, pattern="rows:7,columns:7"))
    rows, columns = (
        randomised(PositionAttention(15, 5, pattern=pattern)) for pattern in ("rows:7", "columns:7")
    )
    x = draw(*SHAPE)
    assert torch.equal(both.weights_of(x, 8), rows.weights_of(x, 8))
    assert torch.equal(both.weights_of(x, 8, step=1), columns.weights_of(rows(x), 8))
