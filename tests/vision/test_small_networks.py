"""The small residual network against a loop over places, and where its gates stand."""

import pytest
import torch
from torch import nn

from sparse_tx.errors import UserError
from sparse_tx.vision.small_networks import ResidualBlock, SmallResNet

BATCH, HEIGHT, WIDTH = 3, 11, 13


class Scale(nn.Module):
    """A gate that is told apart from none: each channel by a factor of its own."""

    def __init__(self, channels: int):
        super().__init__()
        self.factors = nn.Parameter(torch.linspace(0.25, 1.75, channels))

    def forward(self, x):
        return x * self.factors[:, None, None]


def convolve(x, weight, stride):
    """A convolution without bias as loops over places and taps, zeros beyond the edges."""
    B, _, H, W = x.shape
    reach = weight.shape[-1] // 2
    out = x.new_zeros(B, len(weight), -(-H // stride), -(-W // stride))
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            for down in range(weight.shape[2]):
                for right in range(weight.shape[3]):
                    y, z = stride * row + down - reach, stride * column + right - reach
                    if 0 <= y < H and 0 <= z < W:
                        out[:, :, row, column] += x[:, :, y, z] @ weight[:, :, down, right].T
    return out


def normalise(x, norm):
    """Batch norm with its running figures, a channel at a time."""
    out = torch.empty_like(x)
    for c in range(x.shape[1]):
        deviation = (norm.running_var[c] + norm.eps).sqrt()
        out[:, c] = (x[:, c] - norm.running_mean[c]) / deviation * norm.weight[c] + norm.bias[c]
    return out


def expected_block(block, x, stride, factors):
    first, first_norm, _, second, second_norm = block.branch
    hidden = normalise(convolve(x, first.weight, stride), first_norm).clamp(min=0)
    added = normalise(convolve(hidden, second.weight, 1), second_norm)
    added = added * factors[:, None, None]
    passing = x
    if not isinstance(block.passing, nn.Identity):
        passing = normalise(convolve(x, block.passing[0].weight, stride), block.passing[1])
    return (added + passing).clamp(min=0)


def shake(module):
    """Other norms than those of the start, which hide mistakes."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.weight.data, part.running_var):
                values.uniform_(0.5, 1.5)
            for values in (part.bias.data, part.running_mean):
                values.uniform_(-0.5, 0.5)
    return module.double().eval()


@pytest.mark.parametrize(
    ("before", "width", "stride"), [(5, 5, 1), (5, 7, 1), (5, 7, 2), (5, 5, 2)]
)
def test_a_block_is_the_sum_that_its_docstring_states(before, width, stride):
    torch.manual_seed(1)
    block = shake(ResidualBlock(before, width, stride=stride, gate=Scale))
    x = torch.randn(BATCH, before, HEIGHT, WIDTH, dtype=torch.float64)
    expected = expected_block(block, x, stride, block.gate.factors)
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def test_the_network_is_its_blocks_the_mean_and_the_classifier():
    torch.manual_seed(2)
    network = shake(SmallResNet((5, 7), 2, 3, Scale, in_channels=2, stride=2))
    x = torch.randn(BATCH, 2, HEIGHT, WIDTH, dtype=torch.float64)
    features = normalise(convolve(x, network.stem[0].weight, 2), network.stem[1]).clamp(min=0)
    for block, stride in zip(network.stages, (1, 1, 2, 1), strict=True):
        features = expected_block(block, features, stride, block.gate.factors)
    assert features.shape == (BATCH, 7, 3, 4)
    mean = sum(features[:, :, y, x] for y in range(3) for x in range(4)) / 12
    expected = mean @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


def test_each_block_has_a_gate_of_its_width():
    asked = []
    SmallResNet((5, 7, 11), 2, 3, lambda width: asked.append(width) or nn.Identity())
    assert asked == [5, 5, 7, 7, 11, 11]


def test_without_gates_it_is_the_network_whose_gates_do_nothing():
    torch.manual_seed(3)
    bare, gated = SmallResNet((5, 7), 1, 3), SmallResNet((5, 7), 1, 3, Scale)
    left = gated.load_state_dict(bare.state_dict(), strict=False)
    assert left.unexpected_keys == []
    assert left.missing_keys == ["stages.0.gate.factors", "stages.1.gate.factors"]
    x = torch.randn(BATCH, 1, HEIGHT, WIDTH)
    assert not torch.equal(gated.eval()(x), bare.eval()(x))
    for block in gated.stages:
        block.gate.factors.data.fill_(1)
    assert torch.equal(gated(x), bare(x))


def test_gradients_reach_every_weight():
    torch.manual_seed(4)
    network = SmallResNet((5, 7), 2, 3, Scale)
    network(torch.randn(BATCH, 1, HEIGHT, WIDTH)).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in network.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), 1, 3), "channels is empty"),
        (((5, 0), 1, 3), r"channels\[1\] of SmallResNet is 0; it must be a whole number"),
        (((5,), 0, 3), "blocks of SmallResNet is 0"),
        (((5,), 1.5, 3), "blocks of SmallResNet is 1.5; it must be a whole number, 1 or more"),
        (((5,), 1, 0), "classes of SmallResNet is 0"),
    ],
)
def test_sizes_that_cannot_be_used(arguments, message):
    with pytest.raises(UserError, match=message):
        SmallResNet(*arguments)


def test_further_sizes_that_cannot_be_used():
    with pytest.raises(UserError, match="stride of SmallResNet is 0"):
        SmallResNet((5,), 1, 3, stride=0)
    with pytest.raises(UserError, match="in_channels of SmallResNet is -1"):
        SmallResNet((5,), 1, 3, in_channels=-1)
