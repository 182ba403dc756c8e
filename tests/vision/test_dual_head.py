"""The head of the dual attention network: three outputs, and a loss that takes them."""

import pytest
import torch
import torch.nn.functional as F

from sparse_tx.vision import DualAttentionHead, DualLogits
from tests.vision import loops
from tests.vision.helpers import assert_close, draw, head, randomised, weights_of


def convolved(x, weight):
    """A 3x3 convolution with a border of zeros, as a loop over the window's nine maps."""
    padded = F.pad(x, (1, 1, 1, 1))
    H, W = x.shape[2:]
    return sum(
        torch.einsum("oi,biyx->boyx", weight[:, :, y, x_], padded[:, :, y : y + H, x_ : x_ + W])
        for y in range(3)
        for x_ in range(3)
    )


def expected(module, x):
    """The head by its equation: the loops' attention, everything else written out."""
    weights = {name: torch.as_tensor(array) for name, array in weights_of(module).items()}

    def convolution(maps, name):
        mean, variance, gain, bias = (
            weights[f"{name}.1.{kind}"][:, None, None]
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        out = convolved(maps, weights[f"{name}.0.weight"])
        return ((out - mean) / (variance + 1e-5).sqrt() * gain + bias).clamp(min=0)

    def classify(maps, name):
        weight, bias = weights[f"{name}.1.weight"], weights[f"{name}.1.bias"]
        return torch.as_tensor(loops.mapped(maps.numpy(), weight.numpy(), bias.numpy()))

    projections = [
        (weights[f"position.1.{name}.weight"].numpy(), weights[f"position.1.{name}.bias"].numpy())
        for name in ("query", "key", "value")
    ]
    position = convolution(x, "position.0").numpy()
    position = loops.position_step(position, *projections, weights["position.1.alpha"].item())
    position = convolution(torch.as_tensor(position), "position.2")
    channel = convolution(x, "channel.0").numpy()
    channel = loops.channel_step(channel, weights["channel.1.beta"].item(), "reversed")
    channel = convolution(torch.as_tensor(channel), "channel.2")
    return (
        classify(position + channel, "classify_sum"),
        classify(position, "classify_position"),
        classify(channel, "classify_channel"),
    )


def test_the_head_is_its_equation():
    module, x = randomised(head()), draw(2, 20, 3, 5)
    outputs = module(x)
    assert isinstance(outputs, DualLogits)
    for found, wanted in zip(outputs, expected(module, x), strict=True):
        assert found.shape == (2, 7, 3, 5)
        assert_close(found, wanted, within=1e-11)


def test_the_inner_width_is_a_quarter_as_released():
    module = DualAttentionHead(96, 7)
    assert module.inner == 24 and module.position[1].channels == 24
    assert module.position[1].query.out_channels == 3
    assert [m.p for m in module.modules() if isinstance(m, torch.nn.Dropout2d)] == [0.1] * 3
    assert DualAttentionHead(97, 7, inner=16).position[0][0].out_channels == 16


def test_options_reach_the_attention():
    x = draw(2, 20, 3, 5)
    results = [
        randomised(head(**settings))(x).sum
        for settings in ({}, dict(pattern="rows:5"), dict(form="scaled"))
    ]
    for n, one in enumerate(results):
        assert not any(torch.allclose(one, other) for other in results[:n])
    assert torch.equal(randomised(head(pattern="rows:5"))(x).channel, randomised(head())(x).channel)


def bilinear(logits, size):
    """With the corners aligned, one number after another."""
    B, K, H, W = logits.shape
    out = torch.zeros(B, K, *size, dtype=logits.dtype)
    for y in range(size[0]):
        for x in range(size[1]):
            row = y * (H - 1) / (size[0] - 1) if size[0] > 1 else 0.0
            column = x * (W - 1) / (size[1] - 1) if size[1] > 1 else 0.0
            top, left = min(int(row), H - 1), min(int(column), W - 1)
            bottom, right = min(top + 1, H - 1), min(left + 1, W - 1)
            down, across = row - top, column - left
            out[:, :, y, x] = (1 - down) * (
                (1 - across) * logits[:, :, top, left] + across * logits[:, :, top, right]
            ) + down * (
                (1 - across) * logits[:, :, bottom, left] + across * logits[:, :, bottom, right]
            )
    return out


def cross_entropy(logits, target, ignore_index):
    total, counted = 0.0, 0
    for b, y, x in torch.cartesian_prod(*(torch.arange(n) for n in target.shape)).tolist():
        if (label := target[b, y, x].item()) != ignore_index:
            total += (logits[b, :, y, x].logsumexp(0) - logits[b, label, y, x]).item()
            counted += 1
    return total / counted


def random_target(*shape):
    return torch.randint(7, shape, generator=torch.Generator().manual_seed(11))


@pytest.mark.parametrize("size", [(3, 5), (13, 17), (1, 2)])
def test_the_loss_is_the_sum_of_three_cross_entropies_at_the_target_s_size(size):
    outputs, target = randomised(head())(draw(2, 20, 3, 5)), random_target(2, *size)
    target[0, 0, 0] = -1
    parts = [cross_entropy(bilinear(one, size), target, -1) for one in outputs]
    assert DualAttentionHead.loss(outputs, target).item() == pytest.approx(sum(parts), rel=1e-12)
    weighted = DualAttentionHead.loss(outputs, target, weights=(1.0, 0.25, 0.5)).item()
    assert weighted == pytest.approx(parts[0] + 0.25 * parts[1] + 0.5 * parts[2], rel=1e-12)


def test_what_is_ignored_does_not_count():
    outputs, target = randomised(head())(draw(2, 20, 3, 5)), random_target(2, 3, 5)
    target[:, :, 3] = 255
    loss = DualAttentionHead.loss(outputs, target, ignore_index=255).item()
    parts = [cross_entropy(one, target, 255) for one in outputs]
    assert loss == pytest.approx(sum(parts), rel=1e-12)


def test_a_batch_in_which_nothing_counts_has_no_loss_and_no_gradient():
    module = randomised(head())
    loss = module.loss(module(draw(2, 20, 3, 5)), torch.full((2, 6, 10), -1))
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.any() for parameter in module.parameters())


def test_the_loss_trains_every_parameter():
    module = randomised(head()).train()
    module.loss(module(draw(2, 20, 3, 5)), random_target(2, 6, 10)).backward()
    trained = dict(module.named_parameters())
    del trained["position.1.key.bias"]  # adds the same to a whole row of energies
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_gradients_of_the_head():
    module, x = randomised(head()), draw(1, 20, 2, 3)
    target = random_target(1, 4, 5)

    def loss(x):
        return module.loss(module(x), target)

    assert torch.autograd.gradcheck(loss, (x.requires_grad_(),))


@pytest.mark.parametrize(
    ("outputs", "target", "settings", "sentence"),
    [
        (0, (2, 3, 5), {}, "one tensor; give it all three outputs"),
        (slice(0, 2), (2, 3, 5), {}, "with 2 outputs and 3 weights; there are three of each"),
        (slice(None), (2, 3, 5), dict(weights=(1.0,)), "3 outputs and 1 weights"),
        (slice(None), (3, 3, 5), {}, "target has shape (3, 3, 5); it must be (B, H, W), with 2"),
        (slice(None), (2, 1, 3, 5), {}, "target has shape (2, 1, 3, 5)"),
    ],
)
def test_what_the_loss_cannot_use_gets_a_sentence(outputs, target, settings, sentence):
    given = randomised(head())(draw(2, 20, 3, 5))[outputs]
    with pytest.raises(ValueError) as raised:
        DualAttentionHead.loss(given, random_target(*target), **settings)
    assert sentence in str(raised.value)


def test_targets_are_whole_numbers():
    outputs = randomised(head())(draw(2, 20, 3, 5))
    with pytest.raises(TypeError, match=r"target is torch.uint8; .* as target.long\(\) gives"):
        DualAttentionHead.loss(outputs, random_target(2, 3, 5).to(torch.uint8))
