"""The convolutional block attention module: gates for channels and positions (arXiv:1807.06521).

Where paper and released code differ, defaults are those of the released code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_tx.accounting.maps import DESCRIPTORS
from sparse_tx.errors import UserError
from sparse_tx.vision.checks import (
    require_choice,
    require_count,
    require_maps,
    require_reduction,
    require_variance,
)
from sparse_tx.vision.squeeze_excite import bottleneck, gate

# Maxima are amax: among equal values the gradient is shared out, so that it does not depend on the
# order of positions or channels. The released code's max gives all of it to one of them.
POOLS = {"avg": torch.mean, "max": torch.amax}
ORDERS = ("channel_spatial", "spatial_channel", "parallel", "channel", "spatial")
# A running average's share of each batch in the released spatial gate.
NORM_MOMENTUM = 0.01
# How many times narrower the hidden layer is when nobody says so.
REDUCTION = 16


class ChannelGate(nn.Module):
    """``x * sigmoid(sum of MLP(pool(x)))``, with pools over positions (section 3, eq. 2).

    The pools share one MLP, whose last bias therefore counts once for each of them, and one sigmoid
    is taken over the sum. With ``pools=("avg",)`` it is the gate of ``SqueezeExcite``.

    Args:
        channels: C of the maps.
        reduction: how many times narrower the MLP's hidden layer is; it divides ``channels``.
        pools: "avg", "max" or both. Equal maxima share the gradient.
        shared: whether the pools share their MLP, as in the paper; else each has its own.
        bias: whether linear layers have biases: so in the released code, not in the equation.

    Raises:
        UserError: ``reduction`` does not divide ``channels``; pools that are unknown, repeated or
            none.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = REDUCTION,
        *,
        pools: Sequence[str] = ("avg", "max"),
        shared: bool = True,
        bias: bool = True,
    ):
        super().__init__()
        require_reduction(reduction, channels, "ChannelGate")
        _require_pools(pools)
        self.channels, self.reduction, self.pools = channels, reduction, tuple(pools)
        self.shared, self.bias = shared, bias
        own = 1 if shared else len(self.pools)
        self.mlps = nn.ModuleList(bottleneck(channels, reduction, bias) for _ in range(own))

    def logits(self, x: Tensor) -> Tensor:
        """What the sigmoid is taken of: ``(B, C, 1, 1)``."""
        total = 0
        for n, pool in enumerate(self.pools):
            mlp = self.mlps[0 if self.shared else n]
            total = total + mlp(POOLS[pool](x, (2, 3)))
        return total[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of ``x``, ``(B, C, H, W)``; the result has its shape and type."""
        require_maps(x, self.channels, "ChannelGate")
        return gate(x, self.logits(x))


class SpatialGate(nn.Module):
    """``x * sigmoid(norm(conv(descriptor(x))))``: one gate for every position (section 3, eq. 3).

    The descriptor "pool" is the maximum and the mean over channels, in this order as in the
    released code; weights of an implementation that has the mean first (timm's) fit after
    ``weight.flip(1)`` of the convolution. The norm follows the release too. There its gain starts
    at 0, so that all gates start at 1/2, and its running averages move by 0.01 of each batch, which
    is slow for a training of few steps: set ``gate.batch_norm.momentum = 0.1`` for one.

    Args:
        kernel_size: of the convolution over positions; odd, so that maps keep their size.
        descriptor: "pool"; or "conv", a learnt 1x1 convolution to one map, which needs
            ``channels``.
        channels: C of the maps; with "pool" any number when not given.
        norm: whether a batch norm follows the convolution: so in the released code, not in the
            equation.

    Raises:
        UserError: an even kernel, an unknown descriptor, or "conv" without ``channels``.
    """

    def __init__(
        self,
        kernel_size: int = 7,
        *,
        descriptor: str = "pool",
        channels: int | None = None,
        norm: bool = True,
    ):
        super().__init__()
        _require_descriptor(kernel_size, descriptor)
        if channels is not None:
            require_count("channels", channels, "SpatialGate")
        elif descriptor == "conv":
            raise UserError(
                "descriptor 'conv' of SpatialGate has a weight for every channel; give"
                " channels=..., the number of them"
            )
        self.kernel_size, self.descriptor = kernel_size, descriptor
        self.channels, self.norm = channels, norm
        described = 2 if descriptor == "pool" else 1
        self.describe = None if descriptor == "pool" else nn.Conv2d(channels, 1, 1, bias=False)
        self.conv = nn.Conv2d(described, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.batch_norm = nn.BatchNorm2d(1, momentum=NORM_MOMENTUM) if norm else None
        if norm:
            nn.init.zeros_(self.batch_norm.weight)

    def logits(self, x: Tensor) -> Tensor:
        """What the sigmoid is taken of: ``(B, 1, H, W)``."""
        if self.describe is None:
            described = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        else:
            described = self.describe(x)
        out = self.conv(described)
        if self.batch_norm is None:
            return out
        require_variance(x, self.batch_norm, "SpatialGate", "build it with norm=False")
        return self.batch_norm(out)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the positions of ``x``, ``(B, C, H, W)``; the result has its shape and type."""
        require_maps(x, self.channels, "SpatialGate")
        return gate(x, self.logits(x))


class CBAM(nn.Module):
    """A channel gate and a spatial gate, one after the other, at once, or one alone.

    Every row of the paper's three ablations is one setting. Options are those of ``ChannelGate``
    and ``SpatialGate``.

    Args:
        channels: C of the maps.
        reduction: of the channel gate.
        order: "channel_spatial" as in the paper, or "spatial_channel"; "parallel" takes one sigmoid
            over the sum of both gates' logits; "channel" or "spatial" has one gate alone.
        pools: of the channel gate.
        shared: whether the channel gate's pools share their MLP.
        bias: of the channel gate's linear layers.
        kernel_size: of the spatial gate.
        descriptor: of the spatial gate.
        norm: of the spatial gate.

    Raises:
        UserError: an unknown order, or what the gates refuse, the one that is left out included.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = REDUCTION,
        *,
        order: str = "channel_spatial",
        pools: Sequence[str] = ("avg", "max"),
        shared: bool = True,
        bias: bool = True,
        kernel_size: int = 7,
        descriptor: str = "pool",
        norm: bool = True,
    ):
        super().__init__()
        require_choice("order", order, ORDERS, "CBAM")
        require_count("channels", channels, "CBAM")
        require_count("reduction", reduction, "CBAM")
        # A reduction that nobody gave says nothing about a module without a channel gate.
        if order != "spatial" or reduction != REDUCTION:
            require_reduction(reduction, channels, "ChannelGate")
        _require_pools(pools)
        _require_descriptor(kernel_size, descriptor)
        self.channels, self.reduction, self.order = channels, reduction, order
        self.pools, self.shared, self.bias = pools, shared, bias
        self.kernel_size, self.descriptor, self.norm = kernel_size, descriptor, norm
        self.channel_gate = self.spatial_gate = None
        if order != "spatial":
            self.channel_gate = ChannelGate(
                channels, reduction, pools=pools, shared=shared, bias=bias
            )
        if order != "channel":
            self.spatial_gate = SpatialGate(
                kernel_size, descriptor=descriptor, channels=channels, norm=norm
            )

    def forward(self, x: Tensor) -> Tensor:
        """Gate ``x``, ``(B, C, H, W)``; the result has its shape and type."""
        require_maps(x, self.channels, "CBAM")
        if self.order == "parallel":
            return gate(x, self.channel_gate.logits(x) + self.spatial_gate.logits(x))
        gates = (self.channel_gate, self.spatial_gate)
        for one in reversed(gates) if self.order == "spatial_channel" else gates:
            x = x if one is None else one(x)
        return x


def _require_pools(pools: Sequence[str]) -> None:
    """Raise a ``UserError`` unless a channel gate can have these."""
    if isinstance(pools, str) or not pools or len(set(pools)) < len(pools):
        raise UserError(
            f"pools of ChannelGate is {pools!r}; give one or both of {tuple(POOLS)}, once each"
        )
    for pool in pools:
        require_choice("pool", pool, POOLS, "ChannelGate")


def _require_descriptor(kernel_size: int, descriptor: str) -> None:
    """Raise a ``UserError`` unless a spatial gate can have these."""
    require_count("kernel_size", kernel_size, "SpatialGate")
    if kernel_size % 2 == 0:
        raise UserError(
            f"kernel_size of SpatialGate is {kernel_size}; an even kernel shifts the map, take"
            f" {kernel_size - 1} or {kernel_size + 1}"
        )
    require_choice("descriptor", descriptor, DESCRIPTORS, "SpatialGate")
