"""Parameters and multiply-accumulates of any network of torch modules, without computing anything.

Convolutions and linear layers are counted by the shapes that they are called with, products between
positions or channels by ``sparse_tx.accounting.maps``, which also says what a MAC is: what has no
weights and no pairs, such as pooling, norms, activations, gates and sums, has none.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from sparse_tx.accounting import maps
from sparse_tx.accounting.maps import MapCost, MapShape
from sparse_tx.errors import UserError
from sparse_tx.vision.checks import require_maps
from sparse_tx.vision.dual_attention import ChannelAttention, PositionAttention
from sparse_tx.vision.non_local import NonLocal


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """What a network holds, and what one input costs it, forward.

    Attributes:
        parameters: all of them, shared ones once.
        buffers: numbers that are kept beside them, such as the running averages of norms; whole
            numbers, such as the count of batches, are none of these.
        macs: multiply-accumulates.
        by_module: the MACs by the name of the module, for those that have any, in the order of
            their first calls.
    """

    parameters: int
    buffers: int
    macs: int
    by_module: dict[str, int]

    @property
    def flops(self) -> int:
        """Two for every MAC."""
        return 2 * self.macs


def count_network(network: nn.Module, shape: tuple[int, ...]) -> NetworkCost:
    """Count a network's parameters, and its MACs for one input.

    A copy without numbers is run on the meta device in evaluation mode, with an input of the type
    of the network's first floating-point parameter; the network itself is left as it is. A module
    that is called twice counts twice. What a module multiplies by itself without a layer, as with
    ``torch.matmul``, is seen only in those of ``sparse_tx.vision``.

    Args:
        network: of any size, on any device, the meta device included.
        shape: of one input without the batch, such as ``(3, 224, 224)``.

    Raises:
        UserError: a module of another kind has a matrix of its own, so that it may multiply by it;
            or an attention module is called with maps that it cannot take.
    """
    counted: dict[str, int] = {}

    def note(name: str, macs: int) -> None:
        counted[name] = counted.get(name, 0) + macs

    double = _without_numbers(network)
    for name, module in _counted_modules(double):
        module.register_forward_hook(
            lambda module, args, named, output, name=name: note(
                name, _macs(module, _first_tensor(*args, *named.values()), output)
            ),
            with_kwargs=True,
        )
    dtypes = (p.dtype for p in network.parameters() if p.is_floating_point())
    with torch.no_grad():
        double(torch.empty(1, *shape, device="meta", dtype=next(dtypes, None)))
    return NetworkCost(
        parameters=sum(p.numel() for p in network.parameters()),
        buffers=sum(b.numel() for b in network.buffers() if b.is_floating_point()),
        macs=sum(counted.values()),
        by_module=counted,
    )


@singledispatch
def cost_of_attention(module: nn.Module, shape: MapShape) -> MapCost:
    """What an attention module of ``sparse_tx.vision`` costs on a map, from accounting.

    Raises:
        TypeError: it has no products between positions or channels.
    """
    raise TypeError(f"{type(module).__name__} has no products between positions or channels")


@cost_of_attention.register
def _(module: NonLocal, shape: MapShape) -> MapCost:
    return maps.non_local(
        shape,
        module.inner,
        similarity=module.similarity,
        norm=module.norm,
        subsample=module.subsample,
        factor=module.factor,
        pattern=module.pattern,
    )


@cost_of_attention.register
def _(module: PositionAttention, shape: MapShape) -> MapCost:
    pattern = "dense" if module.pattern is None else module.pattern
    return maps.position_attention(shape, module.reduction, pattern=pattern)


@cost_of_attention.register
def _(module: ChannelAttention, shape: MapShape) -> MapCost:
    return maps.channel_attention(shape)


_ATTENTION = (NonLocal, PositionAttention, ChannelAttention)
# Norms whose scales may have several axes.
_NORMS = (nn.LayerNorm, nn.RMSNorm)


def _without_numbers(network: nn.Module) -> nn.Module:
    """A copy on the meta device, for which no weight is copied, in evaluation mode.

    Attention modules, which are counted by their types, give back what they are given: along a
    pattern they have no form without numbers.
    """
    tensors = [*network.parameters(), *network.buffers()]
    empty = {}
    for tensor in tensors:
        other = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            other = nn.Parameter(other, requires_grad=tensor.requires_grad)
        empty[id(tensor)] = other
    double = copy.deepcopy(network, empty).eval()
    for module in double.modules():
        if isinstance(module, _ATTENTION):
            module.forward = lambda x: x
    return double


def _counted_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules with MACs, by name; what is inside an attention module is counted with it."""
    within: set[nn.Module] = set()
    for name, module in network.named_modules():
        if module in within:
            continue
        if isinstance(module, _ATTENTION):
            within.update(module.modules())
            yield name, module
        elif isinstance(module, _ConvNd | nn.Linear):
            yield name, module
        elif not isinstance(module, _NORMS) and any(
            own.dim() > 1 for own in module.parameters(recurse=False)
        ):
            raise UserError(
                f"'{name}' is a {type(module).__name__}, which has a matrix of its own, and what it"
                " multiplies by it is unknown; count networks of convolutions, linear layers and"
                " the modules of sparse_tx.vision"
            )


def _first_tensor(*arguments: object) -> Tensor | None:
    """The input among what a layer is called with, by place or by name."""
    return next((one for one in arguments if isinstance(one, Tensor)), None)


def _macs(module: nn.Module, given: Tensor | None, result: Tensor) -> int:
    """The MACs of one call, for a batch of one."""
    if isinstance(module, _ATTENTION):
        channels, dims = getattr(module, "channels", None), getattr(module, "dims", 2)
        require_maps(given, channels, type(module).__name__, dims)
        return cost_of_attention(module, MapShape(tuple(given.shape[2:]), given.shape[1])).macs
    if isinstance(module, nn.Linear):
        return result.numel() * module.in_features
    # Every number of the result meets the weights of its group's inputs, and, where the convolution
    # is transposed, every number that is given those of its group's outputs.
    spread = given if isinstance(module, _ConvTransposeNd) else result
    width = module.out_channels if isinstance(module, _ConvTransposeNd) else module.in_channels
    return spread.numel() * width // module.groups * prod(module.kernel_size)
