"""How the positions of maps read one another: over all pairs, or along a pattern.

Modules have one head. A map's positions are numbered row by row, as patterns count them: position
``y * W + x``.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_tx.attention import sparse_attention
from sparse_tx.errors import UserError
from sparse_tx.patterns import Layer, Stack
from sparse_tx.patterns.given import PatternLike, as_stack


def positions_of(maps: Tensor) -> Tensor:
    """The maps ``(B, C, ...)`` as contiguous rows of channels, ``(B, N, C)``."""
    return maps.flatten(2).transpose(1, 2).contiguous()


def maps_of(positions: Tensor, shape: torch.Size) -> Tensor:
    """A view of ``(B, N, C)`` as maps ``(B, C, *shape)``."""
    return positions.transpose(1, 2).unflatten(2, shape)


def widened(x: Tensor) -> Tensor:
    """``x`` in float32 if its type is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Multiply in the type of the factors for a while, whatever autocast is on."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, layer: Layer | None = None) -> Tensor:
    """``softmax(scale q k^T) v``, computed in float32 at least.

    Energies that nothing divides are large, and half precision has too few digits for them. Along a
    pattern no N x N tensor exists; without one, torch's scaled dot product attention decides:
    where it has no fused kernel for the widths and the device, it keeps one for the backward pass.

    Args:
        q: queries ``(B, N, D)``.
        k: keys ``(B, M, D)``; with ``layer``, M is N.
        v: values ``(B, M, D_v)``.
        scale: factor of the energies.
        layer: who may read whom; everybody all when not given.

    Returns:
        ``(B, N, D_v)`` in the type of ``v``.
    """
    dtype = v.dtype
    with without_autocast(v.device):
        q, k, v = (widened(part).unsqueeze(1) for part in (q, k, v))  # (B, 1, N, D)
        if layer is None:
            out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        else:
            out = sparse_attention(q, k, v, layer, scale=scale, causal=False)
    return out.squeeze(1).to(dtype)


def steps_of(pattern: PatternLike | None, owner: str) -> Stack | None:
    """What a module was given as its pattern, as a stack; None stays None.

    Raises:
        UserTypeError: it is no pattern.
        UserError: it is not notation, or has groups of heads.
    """
    if pattern is None:
        return None
    steps = as_stack(pattern, f"pattern of {owner}", such_as="rows:64,columns:64")
    for layer in steps.layers:
        if len(layer.groups) > 1:
            raise UserError(
                f"'{layer}' in the pattern of {owner} has {len(layer.groups)} groups of heads, but"
                " the module has one head; merge sets by '+' or apply them in turn by ','"
            )
    return steps
