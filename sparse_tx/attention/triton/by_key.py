"""Kernels that work by tiles of keys: the gradients of keys and values, and the row products.

A tile of ``BLOCK_N`` keys visits all queries that see it, ``BLOCK_M`` at a time, and sums what they
give it: no two programs of a launch write to the same place, so no atomics are needed and the same
inputs give the same bits. Scores are computed again from ``lse`` (FlashAttention, Dao et al. 2022,
algorithm 4). Where a gradient is not finite, the tile is computed again with care, as in
``by_query``: bad queries and output gradients reach only the keys that they may see.
"""

import triton
import triton.language as tl

from sparse_tx.attention.triton.rows import (
    any_bad,
    cleaned,
    elsewhere,
    head_base,
    load_rows,
    marks,
    store_rows,
)


@triton.jit
def row_products(
    out, d_out, delta, out_strides, d_out_strides, H, T,
    D_V: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write ``delta`` (B, H, T) float32: the product of each row of out with its gradient.

    It equals the sum over all keys of weight times weight's gradient, so that the softmax's way
    back in one tile needs no other.
    """
    tiles = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    batch, head, tile = pid // tiles // H, pid // tiles % H, pid % tiles
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    at = tl.minimum(row, T - 1)
    a = load_rows(head_base(out, out_strides, batch, head), at, out_strides, D_V, BLOCK_DV)
    b = load_rows(head_base(d_out, d_out_strides, batch, head), at, d_out_strides, D_V, BLOCK_DV)
    products = tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)
    tl.store(delta + (batch.to(tl.int64) * H + head) * T + at, products, mask=row < T)


@triton.jit
def _add_queries(
    d_k, d_v, k, v, q_base, d_out_base, lse, delta, q_strides, d_out_strides,
    row, length, q_at, mask, scale,
    MASKED: tl.constexpr, CAREFUL: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Add what the queries at ``q_at``, those with ``row < length``, give to a tile of keys."""
    q = load_rows(q_base, q_at, q_strides, D, BLOCK_D)  # (M, D)
    d_out = load_rows(d_out_base, q_at, d_out_strides, D_V, BLOCK_DV)  # (M, D_v)
    # Rows past the end have no weight on anything.
    own_lse = tl.load(lse + q_at, mask=row < length, other=float("inf"))
    own_delta = tl.load(delta + q_at)
    scores = tl.dot(k, tl.trans(q), input_precision="ieee")  # (N, M)
    weights = tl.math.exp2(scores * scale - own_lse[None, :])
    if CAREFUL:
        weights += marks(d_out)[None, :]
        q = cleaned(q)
    if MASKED:
        weights = tl.where(mask, weights, 0.0)
    d_weights = tl.dot(v, tl.trans(d_out), input_precision="ieee")
    d_scores = weights * (d_weights - own_delta[None, :])
    if MASKED:
        d_scores = tl.where(mask, d_scores, 0.0)
    if CAREFUL:
        d_out = cleaned(d_out)
    d_v = tl.dot(weights.to(d_out.dtype), d_out, d_v, input_precision="ieee")
    d_k = tl.dot(d_scores.to(q.dtype), q, d_k, input_precision="ieee")
    return d_k, d_v


@triton.jit
def _visit(
    k_base, v_base, q_base, d_out_base, lse, delta, k_strides, v_strides, q_strides,
    d_out_strides, scale, k_at, exists, first_key, last_key, column, spacing, length,
    after, below, earlier, n_earlier,
    SOURCE: tl.constexpr, TAKEN: tl.constexpr, CAREFUL: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sum what all queries of a sweep give to the keys at ``k_at``, as far as they ``exist``."""
    k = load_rows(k_base, k_at, k_strides, D, BLOCK_D)
    v = load_rows(v_base, k_at, v_strides, D_V, BLOCK_DV)
    d_k = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    d_v = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
    m = tl.arange(0, BLOCK_M)
    own_after = tl.load(after + k_at)
    first_after = tl.load(after + first_key)
    last_after = tl.load(after + last_key)
    if SOURCE == 0:
        # Inside: from the last key on, and until the first one falls out, queries see all keys.
        begin = first_key // BLOCK_M * BLOCK_M
        full = tl.cdiv(last_key, BLOCK_M) * BLOCK_M
        full_end = tl.maximum(full, first_after // BLOCK_M * BLOCK_M)
        end = last_after
    else:
        # Outside: queries see all keys once the last one has fallen out of the interval.
        begin = tl.cdiv(tl.maximum(first_after - column, 0), spacing) // BLOCK_M * BLOCK_M
        full = tl.cdiv(tl.maximum(last_after - column, 0), spacing)
        if TAKEN or earlier is not None:
            full = length
        full = tl.maximum(begin, tl.cdiv(full, BLOCK_M) * BLOCK_M)
        full_end = tl.maximum(full, tl.cdiv(length, BLOCK_M) * BLOCK_M)
        end = length
    for low in range(full, full_end, BLOCK_M):
        row = low + m
        q_at = column + tl.minimum(row, length - 1) * spacing
        d_k, d_v = _add_queries(
            d_k, d_v, k, v, q_base, d_out_base, lse, delta, q_strides, d_out_strides,
            row, length, q_at, None, scale, False, False, D, D_V, BLOCK_D, BLOCK_DV,
        )  # fmt: skip
    before = (full - begin) // BLOCK_M
    masked = before + tl.cdiv(tl.maximum(end - full_end, 0), BLOCK_M)
    for tile in range(masked):
        row = begin + tile * BLOCK_M + tl.where(tile < before, 0, full_end - full) + m
        q_at = column + tl.minimum(row, length - 1) * spacing
        mask = exists[:, None] & (row < length)[None, :]
        if SOURCE == 0:
            mask = mask & (q_at[None, :] >= k_at[:, None]) & (q_at[None, :] < own_after[:, None])
        else:
            mask = mask & (q_at[None, :] >= own_after[:, None])
        if SOURCE == 2:
            if TAKEN:
                mask = mask & ~elsewhere(q_at[None, :], k_at[:, None], below, earlier, n_earlier)
            elif earlier is not None:
                mask = mask & ~elsewhere(q_at[None, :], k_at[:, None], None, earlier, n_earlier)
        d_k, d_v = _add_queries(
            d_k, d_v, k, v, q_base, d_out_base, lse, delta, q_strides, d_out_strides,
            row, length, q_at, mask, scale, True, CAREFUL, D, D_V, BLOCK_D, BLOCK_DV,
        )  # fmt: skip
    return d_k, d_v


@triton.jit(do_not_specialize=["span"])
def key_gradients(
    q, k, v, d_out, lse, delta, d_k, d_v, heads, after, listed, below, earlier,
    q_strides, k_strides, v_strides, d_out_strides, d_k_strides, d_v_strides,
    B, H, T, n_heads, spacing, list_width, n_earlier, scale, d_scale, span,
    SOURCE: tl.constexpr, TAKEN: tl.constexpr, ADDS: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write, or add to what earlier launches wrote (``ADDS``), ``d_k`` and ``d_v`` of some heads.

    One program per tile of keys, which are, by ``SOURCE``: 0, successive positions, with the
    queries to which they lie inside; 1, listed positions, or 2, positions of one column, with the
    queries to which they lie outside. Early tiles, which have most queries, come first.
    """
    pid = tl.program_id(0)
    entry, work = pid % (n_heads * B), pid // (n_heads * B)
    batch, chosen = entry // n_heads, entry % n_heads
    tile, column = work // spacing, work % spacing
    head = tl.load(heads + 3 * chosen)
    after += tl.load(heads + 3 * chosen + 1).to(tl.int64) * T
    list_row = tl.load(heads + 3 * chosen + 2).to(tl.int64)
    if SOURCE == 1:
        listed += list_row * list_width
    if SOURCE == 1 or TAKEN:
        below += list_row * (T + 1)
    length = tl.cdiv(T - column, spacing)  # of the queries
    if SOURCE == 1:
        n_keys = tl.load(below + T)
    else:
        n_keys = length
    tile_begin = tile * BLOCK_N
    if tile_begin >= n_keys:
        return
    n = tile_begin + tl.arange(0, BLOCK_N)
    exists = n < n_keys
    n_last = tl.minimum(tile_begin + BLOCK_N, n_keys) - 1
    if SOURCE == 1:
        k_at = tl.load(listed + tl.minimum(n, n_last))
        first_key, last_key = tl.load(listed + tile_begin), tl.load(listed + n_last)
    else:
        k_at = column + tl.minimum(n, n_last) * spacing
        first_key, last_key = column + tile_begin * spacing, column + n_last * spacing

    k_base, v_base = head_base(k, k_strides, batch, head), head_base(v, v_strides, batch, head)
    q_base = head_base(q, q_strides, batch, head)
    d_out_base = head_base(d_out, d_out_strides, batch, head)
    lse += (batch.to(tl.int64) * H + head) * T
    delta += (batch.to(tl.int64) * H + head) * T
    d_k_tile, d_v_tile = _visit(
        k_base, v_base, q_base, d_out_base, lse, delta, k_strides, v_strides, q_strides,
        d_out_strides, scale, k_at, exists, first_key, last_key, column, spacing, length,
        after, below, earlier, n_earlier,
        SOURCE, TAKEN, False, D, D_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if any_bad(d_k_tile) + any_bad(d_v_tile) > 0:
        d_k_tile, d_v_tile = _visit(
            k_base, v_base, q_base, d_out_base, lse, delta, k_strides, v_strides, q_strides,
            d_out_strides, scale, k_at, exists, first_key, last_key, column, spacing, length,
            after, below, earlier, n_earlier,
            SOURCE, TAKEN, True, D, D_V, BLOCK_D, BLOCK_DV, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    store_rows(
        head_base(d_k, d_k_strides, batch, head), k_at, exists, d_k_tile * d_scale, d_k_strides,
        ADDS, D, BLOCK_D,
    )  # fmt: skip
    store_rows(
        head_base(d_v, d_v_strides, batch, head), k_at, exists, d_v_tile, d_v_strides,
        ADDS, D_V, BLOCK_DV,
    )  # fmt: skip
