"""The pattern as an ordinary boolean mask: an oracle for tests, and for small experiments."""

import torch

from sparse_tx.errors import UserError
from sparse_tx.masks.heads import one_head, one_layer
from sparse_tx.patterns import Pattern
from sparse_tx.patterns.given import PatternLike

# ``allows`` makes integer temporaries as large as its result; rows are taken a few at a time so
# that these stay small beside the mask itself.
_PAIRS_AT_ONCE = 1 << 22


def dense_mask(
    pattern: PatternLike,
    T: int,
    device: torch.device | str | None = None,
    *,
    n_head: int | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """Build the mask of every pair, True where a query row may read a key column.

    Args:
        pattern: one head's pattern, a layer, or the notation of one layer.
        T: how many positions, in tokens.
        device: where the mask is made (default: the CPU).
        n_head: how many heads share the layer; without it, the mask of a single head is built.
        causal: whether queries read up to themselves only; False, as in a map, drops the triangle.

    Returns:
        ``(T, T)`` bool, or ``(n_head, T, T)`` bool if ``n_head`` is given.

    Raises:
        UserError: the notation cannot be read, is of several layers, or does not fit ``n_head``.
    """
    if T < 0:
        raise UserError(f"a mask of {T} positions; give 0 or more")
    if n_head is None:
        return _mask(one_head(pattern), T, device, causal)
    masks = {head: _mask(head, T, device, causal) for head in set(one_layer(pattern).heads(n_head))}
    return torch.stack([masks[head] for head in one_layer(pattern).heads(n_head)])  # (H, T, T)


def _mask(
    pattern: Pattern, T: int, device: torch.device | str | None, causal: bool
) -> torch.Tensor:
    mask = torch.empty(T, T, dtype=torch.bool, device=device)
    position = torch.arange(T, device=device)
    rows = max(1, _PAIRS_AT_ONCE // max(1, T))
    for first in range(0, T, rows):
        queries = position[first : first + rows, None]
        mask[first : first + rows] = pattern.allows(queries, position, causal)
    return mask
