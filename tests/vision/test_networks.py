"""The published cost tables to the printed digit, and what in them cannot be right.

Parameters and MACs of ImageNet networks: Squeeze-and-Excitation (arXiv:1709.01507, table 10), CBAM
(arXiv:1807.06521, tables 1, 2 and 4). MACs are those of convolutions and linear layers alone.
"""

from functools import cache

import pytest
import torch
from torch import nn

from sparse_tx.errors import UserError
from sparse_tx.vision import CBAM, SpatialGate, SqueezeExcite
from sparse_tx.vision.counting import NetworkCost, count_network
from sparse_tx.vision.networks import BLOCKS, IMAGE, MobileNet, ResNet, mobilenet, resnet


def channel_only(channels):
    return CBAM(channels, order="channel")


def with_spatial(descriptor, kernel_size, order="channel_spatial"):
    return lambda channels: CBAM(
        channels, order=order, descriptor=descriptor, kernel_size=kernel_size
    )


GATES = {
    "none": None,
    "SE": SqueezeExcite,
    "channel": channel_only,
    "1x1, 3": with_spatial("conv", 3),
    "1x1, 7": with_spatial("conv", 7),
    "pooled, 3": with_spatial("pool", 3),
    "pooled, 7": with_spatial("pool", 7),
    "spatial first": with_spatial("pool", 7, "spatial_channel"),
    "parallel": with_spatial("pool", 7, "parallel"),
}


@cache
def cost(network: str, gate: str) -> NetworkCost:
    build = {"MobileNet": mobilenet, **{f"ResNet-{n}": lambda g, n=n: resnet(n, g) for n in BLOCKS}}
    return count_network(build[network](GATES[gate]), IMAGE)


def millions(count: int, digits: int = 2) -> str:
    return f"{count / 1e6:.{digits}f}"


def billions(count: int, digits: int = 3) -> str:
    return f"{count / 1e9:.{digits}f}"


@pytest.mark.parametrize(
    ("network", "gate", "parameters", "macs"),
    [
        ("ResNet-50", "none", "25.56", "3.858"),
        ("ResNet-50", "SE", "28.09", "3.860"),
        ("ResNet-50", "1x1, 7", "28.10", "3.869"),
        ("ResNet-50", "pooled, 3", "28.09", "3.863"),
        ("ResNet-50", "pooled, 7", "28.09", "3.864"),
        ("ResNet-50", "spatial first", "28.09", "3.864"),
        ("ResNet-50", "parallel", "28.09", "3.864"),
        ("ResNet-101", "none", "44.55", "7.570"),
        ("MobileNet", "none", "4.23", "0.569"),
        ("MobileNet", "SE", "5.07", "0.570"),
    ],
)
def test_published_figures(network, gate, parameters, macs):
    found = cost(network, gate)
    assert (millions(found.parameters), billions(found.macs)) == (parameters, macs)


@pytest.mark.parametrize(
    ("network", "gate", "parameters"),
    [
        ("ResNet-50", "channel", "28.09"),
        ("ResNet-50", "1x1, 3", "28.10"),
        ("ResNet-101", "SE", "49.33"),
        ("ResNet-101", "pooled, 7", "49.33"),
        ("MobileNet", "pooled, 7", "5.07"),
    ],
)
def test_published_parameters(network, gate, parameters):
    assert millions(cost(network, gate).parameters) == parameters


def test_exact_counts():
    """Worked out by hand from the papers' tables of layers."""
    assert (cost("ResNet-50", "none").parameters, cost("ResNet-50", "none").macs) == (
        25_557_032,
        3_857_973_248,
    )
    assert cost("ResNet-101", "none").macs == 3_857_973_248 + 17 * 218_365_952
    assert cost("MobileNet", "none").parameters == 4_231_976
    assert cost("ResNet-50", "SE").parameters == 28_088_024
    assert cost("ResNet-50", "SE").macs == 3_857_973_248 + 2_514_944


@pytest.mark.parametrize(
    ("reduction", "printed"), [(4, "35.7"), (8, "30.7"), (16, "28.1"), (32, "26.9")]
)
def test_reductions_of_se_are_printed_with_the_norms_buffers(reduction, printed):
    found = count_network(resnet(50, lambda channels: SqueezeExcite(channels, reduction)), IMAGE)
    assert millions(found.parameters + found.buffers, 1) == printed
    assert found.buffers == 2 * 26_560  # mean and variance of every normed channel
    if reduction != 16:
        assert millions(found.parameters, 1) != printed


def test_erratum_cbam_table_2_channel_gate_alone():
    """Printed 3.860, which is SE's figure: the MLP runs for both pools, and it is 3.863."""
    assert billions(cost("ResNet-50", "channel").macs) == "3.863"
    assert billions(cost("ResNet-50", "channel").macs, 4) == "3.8630"
    added = cost("ResNet-50", "channel").macs - cost("ResNet-50", "none").macs
    assert added == 2 * (cost("ResNet-50", "SE").macs - cost("ResNet-50", "none").macs)


def test_erratum_cbam_table_2_learnt_descriptor():
    """Printed 3.862 for a 3x3 after a 1x1 convolution, less than 3.863 without either.

    With a 7x7 the same table has the right 3.869, and a 3x3 saves 40 MACs a position of it.
    """
    assert billions(cost("ResNet-50", "1x1, 3").macs, 4) == "3.8686"
    assert cost("ResNet-50", "1x1, 3").macs > cost("ResNet-50", "channel").macs
    positions = 3 * 56**2 + 4 * 28**2 + 6 * 14**2 + 3 * 7**2
    saved = cost("ResNet-50", "1x1, 7").macs - cost("ResNet-50", "1x1, 3").macs
    assert saved == 40 * positions


def test_erratum_cbam_table_1():
    """Printed 25.92 M and 3.94, with both pools 4.02: not of gates with a reduction of 16.

    With 25.92 M, gates would have a seventh of their weights, while 0.08 GMAC for a pool are 30
    times what they cost.
    """
    base, gated = cost("ResNet-50", "none"), cost("ResNet-50", "channel")
    assert millions(gated.parameters) == "28.09" != "25.92"
    assert (gated.parameters - base.parameters) / (25.92e6 - base.parameters) > 6.9
    assert (3.94e9 - base.macs) / (cost("ResNet-50", "SE").macs - base.macs) > 30
    for gate in GATES:
        assert billions(cost("ResNet-50", gate).macs, 2) in ("3.86", "3.87")


def test_mobilenet_with_cbam():
    """Counted, with gates after both convolutions of every block."""
    assert billions(cost("MobileNet", "pooled, 7").macs, 4) == "0.5746"


def test_mobilenets_gates_are_in_both_places():
    once = count_network(mobilenet(SqueezeExcite, ["pointwise"]), IMAGE)
    assert millions(once.parameters) == "4.72"
    gates = mobilenet(SqueezeExcite).modules()
    assert sum(isinstance(module, SqueezeExcite) for module in gates) == 26
    assert sum(isinstance(module, SpatialGate) for module in mobilenet(CBAM).modules()) == 26


class FullLayer(nn.Module):
    """A gate from all channels to all channels, without a reduction."""

    def __init__(self, channels):
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x):
        return x * self.linear(x.mean((2, 3))).sigmoid()[:, :, None, None]


def test_a_full_layer_after_each_block_makes_mobilenet_nearly_twice_as_large():
    full = count_network(mobilenet(FullLayer, ["pointwise"]), IMAGE).parameters
    assert millions(full) == "8.08"
    assert f"{full / cost('MobileNet', 'none').parameters:.2f}" == "1.91"


def test_an_unshared_mlp_doubles_the_gates():
    def unshared(channels):
        return CBAM(channels, order="channel", shared=False)

    base = cost("ResNet-50", "none").parameters
    shared = cost("ResNet-50", "channel").parameters - base
    assert count_network(resnet(50, unshared), IMAGE).parameters - base == 2 * shared


@pytest.mark.parametrize("layers", BLOCKS)
def test_gates_stand_after_the_last_norm_of_the_branch(layers):
    """What the gate gives is added to what passes by: at 0, the block is the ReLU of its input."""
    torch.manual_seed(0)
    network = ResNet((1, 1, 1, 1), lambda channels: Zero())
    block = network.stages[0]
    x = torch.randn(2, 64, 5, 3)
    assert torch.equal(block.eval()(x), block.passing(x).relu())
    assert sum(BLOCKS[layers]) == sum(
        isinstance(module, SqueezeExcite) for module in resnet(layers, SqueezeExcite).modules()
    )


class Zero(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


@pytest.mark.parametrize("build", [lambda: ResNet((1, 1, 1, 1), CBAM), lambda: MobileNet(CBAM)])
def test_networks_run(build):
    torch.manual_seed(0)
    network = build().eval()
    with torch.no_grad():
        assert network(torch.randn(2, 3, 37, 41)).shape == (2, 1000)


def test_networks_for_the_counter_hold_nothing():
    for network in (resnet(101, CBAM), mobilenet(CBAM)):
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


def test_a_network_that_is_not_there():
    with pytest.raises(UserError, match=r"no ResNet of 34 layers.*50 and 101"):
        resnet(34)


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        ("depthwise", "places of MobileNet is 'depthwise'; give a list of words, such as"),
        (["pointwise", "depthwize"], "unknown place 'depthwize' of MobileNet: did you mean 'depth"),
        (["stem"], "unknown place 'stem' of MobileNet"),
        ([1], "place of MobileNet is 1; it must be one of the words depthwise, pointwise"),
    ],
)
def test_places_that_are_not_there(places, sentence):
    with pytest.raises(UserError) as raised:
        mobilenet(SqueezeExcite, places)
    assert sentence in str(raised.value)
