"""The pattern as a FlexAttention ``BlockMask``, made from tiles and not from a T x T mask."""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask

from sparse_tx.masks.heads import one_head, one_layer
from sparse_tx.masks.tiles import TileLayout, tile_layout
from sparse_tx.patterns import Pattern
from sparse_tx.patterns.given import PatternLike


def block_mask(
    pattern: PatternLike,
    T: int,
    *,
    n_head: int | None = None,
    tile_size: int = 128,
    device: torch.device | str = "cpu",
) -> BlockMask:
    """Build the ``BlockMask`` with which ``flex_attention`` computes exactly this pattern.

    Equal to ``create_block_mask`` on the pattern's predicate, which would materialise T x T.
    Memory is O(T + heads * tiles^2), where heads with one pattern in common share a layout, and
    if all do, the mask is broadcast over the heads.

    Args:
        pattern: one head's pattern, a layer, or the notation of one layer.
        T: how many positions, in tokens.
        n_head: how many heads share the layer; without it, all heads have the one pattern.
        tile_size: edge of a tile, in tokens; FlexAttention's own default is 128.
        device: where the mask is used.

    Raises:
        UserError: the notation cannot be read, is of several layers, or does not fit ``n_head``.
    """
    heads = (one_head(pattern),) if n_head is None else one_layer(pattern).heads(n_head)
    if len(set(heads)) == 1:
        heads = heads[:1]
    distinct = list(dict.fromkeys(heads))
    layouts = {head: _kv_blocks(tile_layout(head, T, tile_size)) for head in distinct}
    kv_num, kv_indices, full_num, full_indices = (
        torch.from_numpy(np.stack(arrays))[None].to(device)  # (1, H or 1, n_tiles[, n_tiles])
        for arrays in zip(*(layouts[head] for head in heads), strict=True)
    )
    return BlockMask.from_kv_blocks(
        kv_num,
        kv_indices,
        full_num,
        full_indices,
        BLOCK_SIZE=tile_size,
        mask_mod=_mask_mod(distinct, [distinct.index(head) for head in heads], device),
        seq_lengths=(T, T),
    )


def _kv_blocks(layout: TileLayout) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """FlexAttention's form: number and indices of the partial tiles, then of the full ones."""
    n_tiles = layout.n_tiles
    rows = np.repeat(np.arange(n_tiles), np.diff(layout.offsets))
    # FlexAttention reads positions past T in a full tile; the mask must stay on there.
    past_end = (n_tiles - 1 if layout.T % layout.tile_size else n_tiles) <= layout.key_tiles
    past_end |= (rows == n_tiles - 1) & bool(layout.T % layout.tile_size)
    full = layout.is_full & ~past_end
    blocks = []
    for chosen in (~full, full):
        number = np.bincount(rows[chosen], minlength=n_tiles).astype(np.int32)
        begin = np.cumsum(number) - number
        indices = np.zeros((n_tiles, n_tiles), dtype=np.int32)
        column = np.arange(chosen.sum()) - np.repeat(begin, number)
        indices[rows[chosen], column] = layout.key_tiles[chosen]
        blocks += [number, indices]
    return tuple(blocks)


def _mask_mod(patterns: list[Pattern], pattern_of_head: list[int], device) -> Callable:
    """A ``mask_mod`` of ``patterns``, of which head h uses number ``pattern_of_head[h]``."""
    if len(patterns) == 1:
        (pattern,) = patterns
        return lambda b, h, q, k: pattern.allows(q, k)
    number_of_head = torch.tensor(pattern_of_head, device=device)

    def mask_mod(b, h, q, k):
        number = number_of_head[h]
        allowed = (number == 0) & patterns[0].allows(q, k)
        for n, pattern in enumerate(patterns[1:], start=1):
            allowed = allowed | ((number == n) & pattern.allows(q, k))
        return allowed

    return mask_mod
