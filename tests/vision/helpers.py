"""What the tests of modules for maps share."""

import numpy as np
import torch
from torch import Tensor, nn

from sparse_tx.vision import (
    CBAM,
    ChannelAttention,
    ChannelGate,
    DualAttentionHead,
    NonLocal,
    PositionAttention,
    SpatialGate,
    SqueezeExcite,
)

# Not a multiple of 16, of 8 or of 4, but of the reductions here.
CHANNELS = 15
# Every module, in every setting of its function that has one shape for input and output.
MODULES = {
    "se": lambda: SqueezeExcite(CHANNELS, 5),
    "se without bias": lambda: SqueezeExcite(CHANNELS, 3, bias=False),
    "channel gate": lambda: ChannelGate(CHANNELS, 5),
    "channel gate, avg": lambda: ChannelGate(CHANNELS, 5, pools=("avg",)),
    "channel gate, max": lambda: ChannelGate(CHANNELS, 5, pools=("max",), bias=False),
    "channel gate, unshared": lambda: ChannelGate(CHANNELS, 3, shared=False),
    "spatial gate": lambda: SpatialGate(),
    "spatial gate, k3": lambda: SpatialGate(3, norm=False),
    "spatial gate, conv": lambda: SpatialGate(5, descriptor="conv", channels=CHANNELS),
    "cbam": lambda: CBAM(CHANNELS, 5),
    "cbam, spatial first": lambda: CBAM(CHANNELS, 5, order="spatial_channel"),
    "cbam, parallel": lambda: CBAM(CHANNELS, 5, order="parallel"),
    "non-local": lambda: NonLocal(CHANNELS, 7),
    "non-local, gaussian": lambda: NonLocal(CHANNELS, 7, similarity="gaussian"),
    "non-local, dot": lambda: NonLocal(CHANNELS, 7, similarity="dot"),
    "non-local, concat": lambda: NonLocal(CHANNELS, 7, similarity="concat"),
    "non-local without norm": lambda: NonLocal(CHANNELS, 7, norm=False),
    "non-local, before": lambda: NonLocal(CHANNELS, 7, subsample="before"),
    "non-local, after": lambda: NonLocal(CHANNELS, 7, subsample="after", factor=3),
    "non-local, local": lambda: NonLocal(CHANNELS, 7, pattern="local:5"),
    "position": lambda: PositionAttention(CHANNELS, 5),
    "position, strided": lambda: PositionAttention(CHANNELS, 5, pattern="local:3,strided:4"),
    "channel": lambda: ChannelAttention(),
    "channel, plain": lambda: ChannelAttention("plain"),
    "channel, scaled": lambda: ChannelAttention("scaled"),
}
GATES = ("se", "channel gate", "spatial gate", "cbam")
# Those that change nothing before they are trained.
IDENTITIES = [name for name in MODULES if not name.startswith(GATES)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normally distributed numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def randomised(module: nn.Module, seed: int = 7) -> nn.Module:
    """The module in float64, evaluating, with random parameters and running averages."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0.0, 0.5, generator=generator)
    return module


def weights_of(module: nn.Module) -> dict[str, np.ndarray]:
    """The module's parameters and buffers as arrays."""
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def assert_gradients(module: nn.Module, x: Tensor) -> None:
    """By finite differences, to the input and to every parameter."""
    names = [name for name, _ in module.named_parameters()]
    inputs = [x, *(parameter.detach().clone() for parameter in module.parameters())]

    def call(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, tuple(one.requires_grad_() for one in inputs))


def assert_close(found: Tensor, expected: np.ndarray | Tensor, within: float = 1e-12) -> None:
    """To ``within`` of the largest number that is expected."""
    expected = torch.as_tensor(expected)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= within * expected.abs().max()


def head(**settings) -> DualAttentionHead:
    """A small head of the dual attention network: 20 channels, 7 classes, 5 channels inside."""
    return DualAttentionHead(20, 7, reduction=5, **settings)
