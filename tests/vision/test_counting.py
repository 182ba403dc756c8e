"""The counter of networks: against loops, against torch's own counter, and on awkward modules."""

import copy
from itertools import product

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparse_tx.accounting.maps import MapShape, position_attention
from sparse_tx.errors import UserError
from sparse_tx.vision import (
    CBAM,
    ChannelAttention,
    DualAttentionHead,
    NonLocal,
    PositionAttention,
    SqueezeExcite,
)
from sparse_tx.vision.counting import cost_of_attention, count_network
from sparse_tx.vision.networks import mobilenet, resnet


def flops_by_torch(network: nn.Module, shape: tuple[int, ...]) -> int:
    """What torch's counter finds on the meta device, where it sees attention too."""
    network = copy.deepcopy(network).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 4, 3), (6, 7, 5)),
        (nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=1, dilation=2), (6, 11, 13)),
        (nn.Conv2d(6, 9, 3, groups=3, bias=False), (6, 7, 5)),
        (nn.Conv1d(2, 3, 5, padding=2), (2, 11)),
        (nn.Conv3d(2, 3, 2), (2, 5, 3, 4)),
        (nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), (6, 5, 3)),
        (nn.ConvTranspose1d(2, 3, 4, stride=3), (2, 7)),
        (nn.Linear(5, 7), (3, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers(layer, shape):
    found = count_network(layer, shape)
    assert found.flops == flops_by_torch(layer, shape) > 0
    assert found.parameters == sum(p.numel() for p in layer.parameters())
    assert found.by_module == {"": found.macs}


def test_a_grouped_convolution_by_loops():
    macs = 0
    for _position in product(range(5), range(3)):
        for _out in range(9):
            for _weight in product(range(6 // 3), range(3), range(3)):
                macs += 1
    assert count_network(nn.Conv2d(6, 9, 3, groups=3), (6, 7, 5)).macs == macs


@pytest.mark.parametrize(
    "build",
    [lambda: resnet(50, SqueezeExcite), lambda: resnet(50, CBAM), lambda: mobilenet(CBAM)],
    ids=["ResNet and SE", "ResNet and CBAM", "MobileNet and CBAM"],
)
def test_networks_against_torchs_counter(build):
    network, shape = build(), (3, 97, 65)
    assert count_network(network, shape).flops == flops_by_torch(network, shape)


@pytest.mark.parametrize(
    "module",
    [
        NonLocal(14),
        NonLocal(14, similarity="gaussian", norm=False),
        NonLocal(14, similarity="dot"),
        NonLocal(14, 3, subsample="before"),
        NonLocal(14, 3, subsample="after", factor=3),
        NonLocal(14, similarity="dot", subsample="before"),
        PositionAttention(14, 7),
        ChannelAttention(),
        ChannelAttention(form="scaled"),
    ],
)
def test_attention_against_torchs_counter(module):
    shape = (14, 7, 5)
    found = count_network(module, shape)
    assert found.flops == flops_by_torch(module, shape)
    assert found.parameters == sum(p.numel() for p in module.parameters())


def test_concat_has_two_products_with_a_vector_that_torch_does_not_count():
    block, shape = NonLocal(14, 3, similarity="concat"), (14, 7, 5)
    vectors = (35 + 35) * 3
    assert count_network(block, shape).flops == flops_by_torch(block, shape) + 2 * vectors
    assert count_network(block, shape).macs == 35 * 14 * 3 * 4 + 2 * 35 * 3 + 35 * 35 * 3


@pytest.mark.parametrize(("dims", "sizes"), [(1, (13,)), (3, (3, 5, 7))])
def test_lines_and_clips(dims, sizes):
    block = NonLocal(6, dims=dims, subsample="before")
    assert count_network(block, (6, *sizes)).flops == flops_by_torch(block, (6, *sizes))


@pytest.mark.parametrize("pattern", [None, "rows:5,columns:5", "crisscross:5*2", "local:4"])
def test_patterns_are_counted(pattern):
    module = PositionAttention(14, 7, pattern=pattern)
    shape = MapShape((3, 5), 14)
    cost = position_attention(shape, 7, pattern=pattern or "dense")
    assert cost_of_attention(module, shape) == cost
    assert count_network(module, (14, 3, 5)).macs == cost.macs


def test_a_non_local_block_along_a_pattern():
    found = count_network(NonLocal(14, 3, pattern="rows:5"), (14, 3, 5))
    # Four convolutions, and 15 positions that read the 5 of their row.
    assert found.macs == 4 * 15 * 14 * 3 + 15 * 5 * (3 + 3)


def test_a_head_is_its_convolutions_and_its_attention():
    plain = DualAttentionHead(32, 5)
    found = count_network(plain, (32, 7, 11))
    assert found.flops == flops_by_torch(plain, (32, 7, 11))
    sparse = count_network(DualAttentionHead(32, 5, pattern="crisscross:11"), (32, 7, 11))
    assert sparse.parameters == found.parameters
    # Of 77 x 77 pairs, 77 x (11 + 7 - 1) are left, of 1 + 8 MACs each.
    assert found.macs - sparse.macs == 77 * (77 - 17) * (1 + 8)
    assert sum(found.by_module.values()) == found.macs
    assert "position.1" in found.by_module


def test_a_module_that_is_called_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 5, bias=False)

        def forward(self, x):
            return self.layer(self.layer(x))

    found = count_network(Twice(), (5,))
    assert (found.macs, found.parameters) == (50, 25)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_type(dtype):
    network = nn.Sequential(nn.Conv2d(3, 14, 3), nn.BatchNorm2d(14), NonLocal(14), CBAM(14, 7))
    expected = count_network(network, (3, 9, 7))
    assert count_network(network.to(dtype), (3, 9, 7)) == expected


def test_layers_that_are_called_by_keyword():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 14, 3, stride=2)
            self.layer = nn.Conv2d(14, 14, 3)
            self.attention = NonLocal(14)

        def forward(self, x):
            return self.attention(x=self.layer(input=self.up(output_size=[9, 12], input=x)))

    network = Named()
    by_place = nn.Sequential(network.layer, network.attention)
    found, rest = count_network(network, (3, 4, 5)), count_network(by_place, (14, 9, 12))
    assert found.by_module["up"] == 3 * 4 * 5 * 14 * 3 * 3
    assert found.macs - found.by_module["up"] == rest.macs
    assert found.by_module["attention"] == rest.by_module["1"] > 0


def test_shared_parameters_count_once():
    first, second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
    second.weight = first.weight
    found = count_network(nn.Sequential(first, second), (5,))
    assert (found.macs, found.parameters) == (50, 25)


def test_buffers_are_the_norms_averages():
    found = count_network(nn.Sequential(nn.Conv2d(2, 7, 1), nn.BatchNorm2d(7)), (2, 3, 5))
    assert (found.buffers, found.parameters) == (14, 2 * 7 + 7 + 14)
    assert found.macs == 2 * 7 * 15


def test_what_multiplies_nothing_by_weights_costs_nothing():
    network = nn.Sequential(
        nn.ReLU(),
        nn.BatchNorm2d(6),
        nn.GroupNorm(2, 6),
        nn.LayerNorm([6, 5, 3]),
        nn.PReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
    )
    found = count_network(network, (6, 5, 3))
    assert (found.macs, found.by_module) == (0, {})


def test_the_network_itself_is_left_alone():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), CBAM(16), PositionAttention(16)
    ).train()
    before = copy.deepcopy(network.state_dict())
    count_network(network, (3, 9, 7))
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    assert "forward" not in vars(network[3])


def test_nothing_large_is_made():
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, 2**20, 9), nn.Conv2d(2**20, 2**19, 5))
    found = count_network(network, (3, 10_000, 10_000))
    assert found.macs == 9992**2 * 2**20 * 3 * 81 + 9988**2 * 2**39 * 25


class Own(nn.Module):
    """Multiplies by a matrix of its own, which no hook sees."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(5, 5))

    def forward(self, x):
        return x @ self.matrix


@pytest.mark.parametrize(
    ("module", "name"), [(Own(), "Own"), (nn.MultiheadAttention(8, 2), "MultiheadAttention")]
)
def test_unknown_modules_with_matrices_are_refused(module, name):
    with pytest.raises(UserError, match=f"'1' is a {name}, which has a matrix of its own"):
        count_network(nn.Sequential(nn.ReLU(), module), (5,))


def test_maps_that_attention_cannot_take():
    with pytest.raises(UserError, match="built for 14 channels and called with 7"):
        count_network(NonLocal(14), (7, 3, 5))
    with pytest.raises(UserError, match="rows of 4 positions"):
        count_network(PositionAttention(14, 7, pattern="rows:4"), (14, 3, 5))
    with pytest.raises(TypeError, match="no products between positions"):
        cost_of_attention(nn.ReLU(), MapShape((3, 5), 14))
