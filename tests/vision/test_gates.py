"""Squeeze-and-Excitation and CBAM against loops, and what is special about them."""

import pytest
import torch

from sparse_tx.vision import CBAM, ChannelGate, SpatialGate, SqueezeExcite
from tests.vision import loops
from tests.vision.helpers import assert_close, assert_gradients, draw, randomised, weights_of

SHAPE = (2, 15, 5, 7)


def mlps_of(weights, prefix, pools, shared, bias):
    """Weight, bias, weight, bias of each pool's MLP."""
    out = []
    for n in range(len(pools)):
        start = f"{prefix}mlps.{0 if shared else n}."
        names = [f"{start}{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")]
        out.append(
            [weights.get(name) if bias or name.endswith("weight") else None for name in names]
        )
    return out


def norm_of(weights, prefix=""):
    start = f"{prefix}batch_norm."
    names = ("weight", "bias", "running_mean", "running_var")
    return [*(weights[start + name][0] for name in names), 1e-5]


@pytest.mark.parametrize("bias", [True, False])
def test_squeeze_excite_is_its_equation(bias):
    module, x = randomised(SqueezeExcite(15, 5, bias=bias)), draw(*SHAPE)
    weights = weights_of(module)
    names = ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")
    mlp = [weights.get(name) for name in names]
    assert (mlp[1] is not None) == bias
    logits = loops.channel_logits(x.numpy(), [mlp], ["avg"])
    assert_close(module(x), loops.gated(x.numpy(), logits))
    assert_close(module.logits(x).flatten(1), logits)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("pools", [("avg", "max"), ("avg",), ("max",), ("max", "avg")])
def test_channel_gate_is_its_equation(pools, shared, bias):
    module = randomised(ChannelGate(15, 3, pools=pools, shared=shared, bias=bias))
    x = draw(*SHAPE)
    mlps = mlps_of(weights_of(module), "", pools, shared, bias)
    assert_close(module(x), loops.gated(x.numpy(), loops.channel_logits(x.numpy(), mlps, pools)))


def spatial_logits(module, x, prefix=""):
    weights = weights_of(module)
    return loops.spatial_logits(
        x.detach().numpy(),
        weights[f"{prefix}conv.weight"],
        weights.get(f"{prefix}describe.weight"),
        norm_of(weights, prefix) if f"{prefix}batch_norm.weight" in weights else None,
    )


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("descriptor", ["pool", "conv"])
@pytest.mark.parametrize("kernel_size", [1, 3, 7, 11])
def test_spatial_gate_is_its_equation(kernel_size, descriptor, norm):
    gate = SpatialGate(kernel_size, descriptor=descriptor, channels=15, norm=norm)
    module, x = randomised(gate), draw(*SHAPE)
    assert_close(module(x), loops.gated(x.numpy(), spatial=spatial_logits(module, x)))


@pytest.mark.parametrize("descriptor", ["pool", "conv"])
@pytest.mark.parametrize(
    "order", ["channel_spatial", "spatial_channel", "parallel", "channel", "spatial"]
)
def test_cbam_is_its_gates_in_order(order, descriptor):
    module, x = randomised(CBAM(15, 5, order=order, descriptor=descriptor)), draw(*SHAPE)
    pools = ("avg", "max")
    mlps = mlps_of(weights_of(module), "channel_gate.", pools, True, True)

    def channel(maps):
        return loops.channel_logits(maps.detach().numpy(), mlps, pools)

    def spatial(maps):
        return spatial_logits(module, maps, "spatial_gate.")

    if order == "parallel":
        expected = loops.gated(x.numpy(), channel(x), spatial(x))
    else:
        expected = x
        for gate in order.split("_"):
            logits = {gate: dict(channel=channel, spatial=spatial)[gate](expected)}
            expected = torch.as_tensor(loops.gated(expected.numpy(), **logits))
    assert_close(module(x), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SqueezeExcite(6, 3),
        lambda: ChannelGate(6, 3),
        lambda: ChannelGate(6, 2, shared=False, bias=False),
        lambda: SpatialGate(3),
        lambda: SpatialGate(3, descriptor="conv", channels=6, norm=False),
        lambda: CBAM(6, 3, kernel_size=3),
        lambda: CBAM(6, 3, kernel_size=3, order="spatial_channel"),
        lambda: CBAM(6, 3, kernel_size=3, order="parallel", descriptor="conv"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_gates(make, training):
    assert_gradients(randomised(make()).train(training), draw(2, 6, 3, 5))


def test_equal_maxima_share_the_gradient():
    x = torch.zeros(1, 3, 2, 5, dtype=torch.float64)
    x[0, 1, 0, :4] = 2.0  # the channel's maximum, four times
    x.requires_grad_()
    gate = randomised(ChannelGate(3, 1, pools=("max",)))
    gradient = torch.autograd.grad(gate.logits(x).sum(), x)[0][0, 1]
    assert (gradient[0, :4] == gradient[0, 0]).all() and gradient[0, 0] != 0
    assert (gradient[0, 4:] == 0).all() and (gradient[1] == 0).all()
    # All channels of a position are 0 but in row 0: each has a third of the maximum's gradient.
    spatial = randomised(SpatialGate(1, norm=False))
    gradient = torch.autograd.grad(spatial.logits(x).sum(), x)[0][0, :, 1, 2]
    maximum, mean = spatial.conv.weight.flatten().tolist()
    torch.testing.assert_close(gradient, torch.full_like(gradient, (maximum + mean) / 3))


def test_one_mlp_counts_its_last_bias_once_for_each_pool():
    gate = ChannelGate(15, 5).double()
    x = torch.full(SHAPE, 3.0, dtype=torch.float64)  # where mean and maximum are the same
    once = ChannelGate(15, 5, pools=("avg",)).double()
    once.load_state_dict(gate.state_dict())
    assert_close(gate.logits(x), 2 * once.logits(x))


def test_the_average_pool_alone_is_squeeze_excite():
    squeeze, gate = randomised(SqueezeExcite(15, 5)), ChannelGate(15, 5, pools=("avg",)).double()
    gate.mlps[0].load_state_dict(squeeze.mlp.state_dict())
    assert torch.equal(squeeze(draw(*SHAPE)), gate(draw(*SHAPE)))


def test_the_spatial_norm_starts_as_in_the_released_networks():
    x = draw(*SHAPE, dtype=torch.float32)
    assert torch.equal(SpatialGate()(x), x / 2)
    assert not torch.equal(SpatialGate(norm=False)(x), x / 2)


# Tables 1 to 3 of arXiv:1807.06521 (section 4.1), after the row without attention.
ABLATIONS = {
    "AvgPool (SE)": dict(order="channel", pools=("avg",)),
    "MaxPool": dict(order="channel", pools=("max",)),
    "AvgPool & MaxPool": dict(order="channel"),
    "spatial 1x1 conv, k=3": dict(descriptor="conv", kernel_size=3),
    "spatial 1x1 conv, k=7": dict(descriptor="conv", kernel_size=7),
    "spatial avg & max, k=3": dict(kernel_size=3),
    "spatial avg & max, k=7": dict(kernel_size=7),
    "channel + spatial": dict(order="channel_spatial"),
    "spatial + channel": dict(order="spatial_channel"),
    "channel & spatial in parallel": dict(order="parallel"),
}


def test_every_row_of_the_ablations_can_be_made_and_is_another_function():
    x = draw(*SHAPE)
    results = {}
    for row, settings in ABLATIONS.items():
        results[row] = randomised(CBAM(15, 5, **settings))(x)
        assert results[row].shape == x.shape
    rows = [row for row in results if row != "channel + spatial"]  # the last row of Table 2 again
    assert torch.equal(results["channel + spatial"], results["spatial avg & max, k=7"])
    for n, row in enumerate(rows):
        for other in rows[:n]:
            assert not torch.allclose(results[row], results[other]), (row, other)
