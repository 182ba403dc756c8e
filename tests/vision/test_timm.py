"""The modules that timm has too, with its weights copied: an implementation by somebody else."""

import contextlib
import sys
import types
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from sparse_tx.vision import (
    CBAM,
    ChannelGate,
    NonLocal,
    PositionAttention,
    SpatialGate,
    SqueezeExcite,
)
from tests.vision.helpers import assert_close, draw, randomised

SHAPE = (2, 32, 5, 7)


@contextlib.contextmanager
def borrowed_layers():
    """``timm.layers`` for a while, without the rest of timm and without torchvision, of which it
    takes one class of norms that nothing here uses."""
    spec = find_spec("timm")
    if spec is None:
        pytest.skip("timm is not installed (pip install --no-deps timm)")
    before = set(sys.modules)
    for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc", "timm"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = nn.BatchNorm2d
    sys.modules["timm"].__path__ = list(spec.submodule_search_locations)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import timm.layers.cbam
            import timm.layers.non_local_attn
            import timm.layers.squeeze_excite
        yield timm.layers
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("timm", "torchvision"):
                del sys.modules[name]


def test_nothing_stays_of_the_stand_ins():
    before = set(sys.modules)
    with borrowed_layers():
        assert "timm.layers.cbam" in sys.modules
    left = set(sys.modules) - before
    assert not [name for name in left if name.startswith(("timm", "torchvision"))]


@pytest.fixture(scope="module")
def layers():
    with borrowed_layers() as found:
        yield found


def copied(module, theirs, names):
    """The module with the weights of ``theirs``: ``names`` are pairs of prefixes, ours first."""
    state = theirs.state_dict()
    ours = {}
    for key, tensor in module.state_dict().items():
        prefix = next(mine for mine in names if key.startswith(mine))
        ours[key] = state[names[prefix] + key.removeprefix(prefix)].reshape(tensor.shape)
    module.double().eval().load_state_dict(ours)
    return module


MLP = {"mlp.0": "fc1", "mlp.2": "fc2"}
CHANNEL = {"mlps.0.0": "fc1", "mlps.0.2": "fc2"}
SPATIAL = {"conv": "conv.conv", "batch_norm": "conv.bn"}


def with_the_mean_second(gate):
    """timm has mean and maximum in the other order."""
    with torch.no_grad():
        gate.conv.weight.copy_(gate.conv.weight.flip(1))
    return gate


def test_squeeze_excite(layers):
    theirs = randomised(layers.squeeze_excite.SEModule(32, rd_ratio=1 / 4))
    x = draw(*SHAPE)
    assert_close(copied(SqueezeExcite(32, 4), theirs, MLP)(x), theirs(x))


def test_squeeze_excite_of_timm_rounds_its_width(layers):
    """To multiples of 8, where C / r is another number."""
    theirs = layers.squeeze_excite.SEModule(64, rd_ratio=1 / 16)
    assert theirs.fc1.out_channels == 8
    assert SqueezeExcite(64).mlp[0].out_features == 4


@pytest.mark.parametrize("bias", [True, False])
def test_channel_gate(layers, bias):
    theirs = randomised(layers.cbam.ChannelAttn(32, rd_ratio=1 / 8, mlp_bias=bias))
    x = draw(*SHAPE)
    assert_close(copied(ChannelGate(32, 8, bias=bias), theirs, CHANNEL)(x), theirs(x))


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_spatial_gate(layers, kernel_size):
    theirs, x = randomised(layers.cbam.SpatialAttn(kernel_size)), draw(*SHAPE)
    ours = copied(SpatialGate(kernel_size), theirs, SPATIAL)
    assert not torch.allclose(ours(x), theirs(x))
    assert_close(with_the_mean_second(ours)(x), theirs(x))


def test_cbam(layers):
    theirs, x = randomised(layers.cbam.CbamModule(32, rd_ratio=1 / 8)), draw(*SHAPE)
    names = {f"channel_gate.{mine}": f"channel.{other}" for mine, other in CHANNEL.items()}
    names |= {f"spatial_gate.{mine}": f"spatial.{other}" for mine, other in SPATIAL.items()}
    ours = copied(CBAM(32, 8, bias=False), theirs, names)
    with_the_mean_second(ours.spatial_gate)
    assert_close(ours(x), theirs(x))
    x.requires_grad_()
    d_out = draw(*SHAPE, seed=3)
    (found,), (expected,) = (torch.autograd.grad(one(x), x, d_out) for one in (ours, theirs))
    assert_close(found, expected)


NON_LOCAL = dict(theta="t", phi="p", g="g", project="z", batch_norm="norm")


@pytest.mark.parametrize("pattern", [None, "dense"])
@pytest.mark.parametrize("use_scale", [True, False])
def test_non_local(layers, use_scale, pattern):
    theirs = randomised(layers.non_local_attn.NonLocalAttn(32, use_scale=use_scale))
    assert theirs.t.out_channels == 8
    scale = 32**-0.5 if use_scale else 1.0  # timm's is of C, the released code's of C / 2
    ours = copied(NonLocal(32, 8, scale=scale, pattern=pattern), theirs, NON_LOCAL)
    x = draw(*SHAPE)
    assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("use_scale", [True, False])
def test_non_local_in_training(layers, use_scale):
    theirs = randomised(layers.non_local_attn.NonLocalAttn(32, use_scale=use_scale))
    scale = 32**-0.5 if use_scale else 1.0
    ours = copied(NonLocal(32, 8, scale=scale), theirs, NON_LOCAL).train()
    x = draw(*SHAPE)
    assert_close(ours(x), theirs.train()(x))
    for mine, other in zip(ours.batch_norm.buffers(), theirs.norm.buffers(), strict=True):
        assert torch.allclose(mine, other)


def test_position_attention_is_a_non_local_block_without_scale_and_norm(layers):
    """With values as wide as the maps and W_z = alpha."""
    theirs = randomised(layers.non_local_attn.NonLocalAttn(32, use_scale=False, rd_channels=32))
    with torch.no_grad():
        theirs.z.weight.copy_(0.75 * torch.eye(32)[:, :, None, None])
        theirs.z.bias.zero_()
    theirs.norm = nn.Identity()
    ours = PositionAttention(32, 1).double()
    names = {"query": "t", "key": "p", "value": "g"}
    state = {
        f"{mine}.{kind}": theirs.state_dict()[f"{other}.{kind}"]
        for mine, other in names.items()
        for kind in ("weight", "bias")
    }
    ours.load_state_dict(state | {"alpha": torch.tensor([0.75])})
    x = draw(*SHAPE) / 4
    assert_close(ours(x), theirs(x))
