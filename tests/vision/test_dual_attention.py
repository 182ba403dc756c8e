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


# Of two places, (row, column) each, on a map of any width.
PLACES = {
    "rows:{W}": lambda i, j: i[0] == j[0],
    "columns:{W}": lambda i, j: i[1] == j[1],
    "crisscross:{W}": lambda i, j: i[0] == j[0] or i[1] == j[1],
    "tiles:{W}:{E}": lambda i, j: i[0] // 3 == j[0] // 3 and i[1] // 3 == j[1] // 3,
    "lattice:{W}:{E}": lambda i, j: i[0] % 3 == j[0] % 3 and i[1] % 3 == j[1] % 3,
}
every_place = pytest.mark.parametrize(
    ("word", "shape"),
    [
        (word, shape)
        for word in PLACES
        for shape in [(5, 7), (1, 7), (1, 1), (5, 1), (2, 11)]
        if shape[1] >= 3 or "E" not in word  # an edge is no longer than the map is wide
    ],
)


def along(word, shape):
    """Attention along a word that is written for the map's own width, with random weights."""
    return randomised(PositionAttention(15, 5, pattern=word.format(W=shape[1], E=3)))


@every_place
def test_maps_of_one_row_or_column(word, shape):
    module, x = along(word, shape), draw(2, 15, *shape)

    def allowed(i, j):
        return PLACES[word](divmod(i, shape[1]), divmod(j, shape[1]))

    assert_close(module(x), step(module, x.numpy(), allowed))
    d_out = draw(*x.shape, seed=3)
    channels_last = x.to(memory_format=torch.channels_last)
    assert module(channels_last).is_contiguous(memory_format=torch.channels_last)
    rows, channels = (
        torch.autograd.grad(module(one.requires_grad_()), one, d_out)[0]
        for one in (x, channels_last)
    )
    assert_close(channels, rows)


@every_place
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_of_numbers_along_a_map_s_own_width(word, shape, dtype):
    x, d_out = draw(2, 15, *shape) / 4, draw(2, 15, *shape, seed=3)
    within = 64 * torch.finfo(dtype).eps
    expected = results(along(word, shape), x, d_out)
    low = results(along(word, shape).to(dtype), x.to(dtype), d_out.to(dtype))
    for found, other in zip(low, expected, strict=True):
        assert found.dtype == dtype
        assert_close(found.double(), other, within)
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype=dtype):  # around the backward pass, too
            mixed = results(along(word, shape).float(), x.float(), d_out.float())
        for found, other in zip(mixed, expected, strict=True):
            assert found.dtype == torch.float32
            assert_close(found.double(), other, within)


def results(module, x, d_out):
    """What comes out, and the gradients of the input and of the weights of keys and values."""
    x = x.clone().requires_grad_()
    out = module(x)
    inputs = [x, module.value.weight, module.alpha]
    return [out.detach(), *torch.autograd.grad(out, inputs, d_out)]


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_query_that_reads_nothing_has_a_map_of_zeros(dtype):
    """No summary of 64 positions ends on a map of 35."""
    module = randomised(PositionAttention(15, 5, pattern="summary:64:1")).to(dtype)
    x = draw(*SHAPE).to(dtype)
    weights = module.weights_of(x, 17)
    assert torch.equal(weights, torch.zeros(2, 5, 7, dtype=weights.dtype))
    assert torch.equal(module(x), x)
    weights.sum().backward()
    assert not module.query.weight.grad.any()


def test_weights_of_a_later_step_are_of_its_own_input():
    both = randomised(PositionAttention(15, 5, pattern="rows:7,columns:7"))
    rows, columns = (
        randomised(PositionAttention(15, 5, pattern=pattern)) for pattern in ("rows:7", "columns:7")
    )
    x = draw(*SHAPE)
    assert torch.equal(both.weights_of(x, 8), rows.weights_of(x, 8))
    assert torch.equal(both.weights_of(x, 8, step=1), columns.weights_of(rows(x), 8))
