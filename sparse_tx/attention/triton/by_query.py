"""Kernels that work by tiles of queries: the forward pass, and the gradient of the queries.

Both visit the same keys in the same order (``_visit``), a tile of ``BLOCK_M`` queries against
``BLOCK_N`` keys at a time: inside keys, which stand in a row, and outside keys, which are loaded
from wherever a list or the column puts them. Tiles that all queries see whole take no mask.

Scores are in units of log 2, so that exp2 serves. The forward pass is the online softmax of
FlashAttention (Dao et al. 2022, algorithm 1); a sweep that adds keys to those of earlier sweeps
starts from their result as if it were one more key, with the weight of all of them.

A NaN or an infinity in a value reaches, as 0 * NaN, all queries of a masked tile; so does one in a
key, on the way back. A tile of queries whose result is not finite is therefore computed again with
care: bad rows are replaced by zeros, and the scores of the queries that may see them by NaN.
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
def _add_keys(
    acc, peak, total, q, d_out, k_base, v_base, k_strides, v_strides, k_at, mask, scale,
    MASKED: tl.constexpr, CAREFUL: tl.constexpr, GRADIENT: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Add the keys at ``k_at`` to the sums of a tile of queries.

    Forward, ``acc`` (M, D_v) holds the weighted values, ``peak`` the largest score and ``total``
    the sum of weights relative to it. For the gradient, ``acc`` (M, D) is that of the queries but
    for the scale, ``peak`` the log-sum-exp and ``total`` the row products of out and its gradient.
    """
    k = load_rows(k_base, k_at, k_strides, D, BLOCK_D)  # (N, D)
    v = load_rows(v_base, k_at, v_strides, D_V, BLOCK_DV)  # (N, D_v)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")  # (M, N)
    if CAREFUL:
        scores += marks(v)[None, :]
        v = cleaned(v)
        k = cleaned(k)
    if MASKED:
        scores = tl.where(mask, scores, -float("inf"))
    if GRADIENT:
        weights = tl.math.exp2(scores * scale - peak[:, None])
        d_weights = tl.dot(d_out, tl.trans(v), input_precision="ieee")
        d_scores = weights * (d_weights - total[:, None])
        if MASKED:
            d_scores = tl.where(mask, d_scores, 0.0)
        acc = tl.dot(d_scores.to(k.dtype), k, acc, input_precision="ieee")
    else:
        higher = tl.maximum(peak, tl.max(scores, 1) * scale)
        # From -inf, where a query has had no key so far, -inf cannot be subtracted.
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        weights = tl.math.exp2(scores * scale - shift[:, None])
        fade = tl.math.exp2(peak - shift)
        total = total * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        peak = higher
    return acc, peak, total


@triton.jit
def _visit(
    acc, peak, total, q, d_out, k_base, v_base, k_strides, v_strides, scale,
    at, first, last, column, spacing, start, listed, below, earlier, n_earlier,
    INSIDE: tl.constexpr, OUTSIDE: tl.constexpr, TAKEN: tl.constexpr,
    CAREFUL: tl.constexpr, GRADIENT: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add all keys of a sweep to the sums of the queries at ``at``, ``first`` to ``last``."""
    n = tl.arange(0, BLOCK_N)
    own_start = tl.load(start + at)
    first_start = tl.load(start + first)
    last_start = tl.load(start + last)

    if INSIDE:
        # All queries see the keys from the last one's start to the first query.
        begin = first_start // BLOCK_N * BLOCK_N
        full = tl.cdiv(last_start, BLOCK_N) * BLOCK_N
        full_end = tl.maximum(full, (first + 1) // BLOCK_N * BLOCK_N)
        for low in range(full, full_end, BLOCK_N):
            acc, peak, total = _add_keys(
                acc, peak, total, q, d_out, k_base, v_base, k_strides, v_strides,
                low + n, None, scale, False, False, GRADIENT, D, D_V, BLOCK_D, BLOCK_DV,
            )  # fmt: skip
        before = (full - begin) // BLOCK_N
        masked = before + tl.cdiv(tl.maximum(last + 1 - full_end, 0), BLOCK_N)
        for tile in range(masked):
            low = begin + tile * BLOCK_N + tl.where(tile < before, 0, full_end - full)
            k_at = low + n
            mask = (k_at[None, :] <= at[:, None]) & (k_at[None, :] >= own_start[:, None])
            acc, peak, total = _add_keys(
                acc, peak, total, q, d_out, k_base, v_base, k_strides, v_strides,
                tl.minimum(k_at, last), mask, scale,
                True, CAREFUL, GRADIENT, D, D_V, BLOCK_D, BLOCK_DV,
            )  # fmt: skip

    if OUTSIDE != 0:
        # All queries see those below the first one's start, none sees one from the last's on.
        if OUTSIDE == 1:
            full = tl.load(below + first_start) // BLOCK_N * BLOCK_N
            end = tl.load(below + last_start)
        else:
            full = tl.cdiv(tl.maximum(first_start - column, 0), spacing) // BLOCK_N * BLOCK_N
            end = tl.cdiv(tl.maximum(last_start - column, 0), spacing)
            if TAKEN or earlier is not None:
                full = 0
        for low in range(0, full, BLOCK_N):
            if OUTSIDE == 1:
                k_at = tl.load(listed + low + n)
            else:
                k_at = column + (low + n) * spacing
            acc, peak, total = _add_keys(
                acc, peak, total, q, d_out, k_base, v_base, k_strides, v_strides, k_at, None, scale,
                False, False, GRADIENT, D, D_V, BLOCK_D, BLOCK_DV,
            )  # fmt: skip
        for low in range(full, end, BLOCK_N):
            exists = tl.minimum(low + n, end - 1)
            if OUTSIDE == 1:
                k_at = tl.load(listed + exists)
            else:
                k_at = column + exists * spacing
            mask = (low + n < end)[None, :] & (k_at[None, :] < own_start[:, None])
            if OUTSIDE == 2:
                if TAKEN:
                    mask = mask & ~elsewhere(at[:, None], k_at[None, :], below, earlier, n_earlier)
                elif earlier is not None:
                    mask = mask & ~elsewhere(at[:, None], k_at[None, :], None, earlier, n_earlier)
            acc, peak, total = _add_keys(
                acc, peak, total, q, d_out, k_base, v_base, k_strides, v_strides, k_at, mask, scale,
                True, CAREFUL, GRADIENT, D, D_V, BLOCK_D, BLOCK_DV,
            )  # fmt: skip
    return acc, peak, total


@triton.jit
def _locate(heads, n_heads, B, T, spacing, BLOCK_M: tl.constexpr):
    """Which tile this program computes; the last tiles, which have most keys, come first."""
    pid = tl.program_id(0)
    entry, work = pid % (n_heads * B), pid // (n_heads * B)
    batch, chosen = entry // n_heads, entry % n_heads
    tiles = tl.cdiv(tl.cdiv(T, spacing), BLOCK_M)
    tile, column = tiles - 1 - work // spacing, work % spacing
    head = tl.load(heads + 3 * chosen)
    start_row = tl.load(heads + 3 * chosen + 1)
    list_row = tl.load(heads + 3 * chosen + 2)
    length = tl.cdiv(T - column, spacing)
    return batch, head, start_row, list_row, column, length, tile * BLOCK_M


@triton.jit(do_not_specialize=["span"])
def forward(
    q, k, v, out, lse, heads, start, listed, below, earlier,
    q_strides, k_strides, v_strides, out_strides,
    B, H, T, n_heads, spacing, list_width, n_earlier, scale, span,
    INSIDE: tl.constexpr, OUTSIDE: tl.constexpr, TAKEN: tl.constexpr, MERGES: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write ``out`` (B, H, T, D_v) and ``lse`` (B, H, T), in units of log 2, of some heads.

    One program per tile of queries; for the tables and flags see ``plan.Sweep``. ``scale`` is
    positive and holds the factor log2(e); ``span`` only tells tunings apart.
    """
    batch, head, start_row, list_row, column, length, tile_begin = _locate(
        heads, n_heads, B, T, spacing, BLOCK_M
    )
    if tile_begin >= length:
        return
    start += start_row.to(tl.int64) * T
    if OUTSIDE == 1:
        listed += list_row.to(tl.int64) * list_width
    if OUTSIDE == 1 or TAKEN:
        below += list_row.to(tl.int64) * (T + 1)
    row = tile_begin + tl.arange(0, BLOCK_M)
    at = column + tl.minimum(row, length - 1) * spacing
    first = column + tile_begin * spacing
    last = column + (tl.minimum(tile_begin + BLOCK_M, length) - 1) * spacing

    k_base, v_base = head_base(k, k_strides, batch, head), head_base(v, v_strides, batch, head)
    out_base = head_base(out, out_strides, batch, head)
    lse_at = lse + (batch.to(tl.int64) * H + head) * T + at
    q_tile = load_rows(head_base(q, q_strides, batch, head), at, q_strides, D, BLOCK_D)
    if MERGES:
        peak_0 = tl.load(lse_at)
        total_0 = tl.where(peak_0 == -float("inf"), 0.0, 1.0)
        acc_0 = load_rows(out_base, at, out_strides, D_V, BLOCK_DV).to(tl.float32)
    else:
        peak_0 = tl.full((BLOCK_M,), -float("inf"), tl.float32)
        total_0 = tl.zeros((BLOCK_M,), tl.float32)
        acc_0 = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    acc, peak, total = _visit(
        acc_0, peak_0, total_0, q_tile, None, k_base, v_base, k_strides, v_strides, scale,
        at, first, last, column, spacing, start, listed, below, earlier, n_earlier,
        INSIDE, OUTSIDE, TAKEN, False, False, D, D_V, BLOCK_D, BLOCK_DV, BLOCK_N,
    )  # fmt: skip
    if any_bad(acc):
        acc, peak, total = _visit(
            acc_0, peak_0, total_0, q_tile, None, k_base, v_base, k_strides, v_strides, scale,
            at, first, last, column, spacing, start, listed, below, earlier, n_earlier,
            INSIDE, OUTSIDE, TAKEN, True, False, D, D_V, BLOCK_D, BLOCK_DV, BLOCK_N,
        )  # fmt: skip
    has_key = total != 0.0
    total = tl.where(has_key, total, 1.0)
    acc = acc / total[:, None]
    keep = row < length
    tl.store(lse_at, tl.where(has_key, peak + tl.math.log2(total), -float("inf")), mask=keep)
    store_rows(out_base, at, keep, acc, out_strides, False, D_V, BLOCK_DV)


@triton.jit(do_not_specialize=["span"])
def query_gradient(
    q, k, v, d_out, lse, delta, d_q, heads, start, listed, below, earlier,
    q_strides, k_strides, v_strides, d_out_strides, d_q_strides,
    B, H, T, n_heads, spacing, list_width, n_earlier, scale, d_scale, span,
    INSIDE: tl.constexpr, OUTSIDE: tl.constexpr, TAKEN: tl.constexpr, MERGES: tl.constexpr,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write, or add to what earlier sweeps wrote (``MERGES``), the gradient ``d_q`` of some heads.

    ``delta`` (B, H, T) are the row products of out and its gradient, ``d_scale`` the scale of the
    scores without log2(e).
    """
    batch, head, start_row, list_row, column, length, tile_begin = _locate(
        heads, n_heads, B, T, spacing, BLOCK_M
    )
    if tile_begin >= length:
        return
    start += start_row.to(tl.int64) * T
    if OUTSIDE == 1:
        listed += list_row.to(tl.int64) * list_width
    if OUTSIDE == 1 or TAKEN:
        below += list_row.to(tl.int64) * (T + 1)
    row = tile_begin + tl.arange(0, BLOCK_M)
    at = column + tl.minimum(row, length - 1) * spacing
    first = column + tile_begin * spacing
    last = column + (tl.minimum(tile_begin + BLOCK_M, length) - 1) * spacing

    k_base, v_base = head_base(k, k_strides, batch, head), head_base(v, v_strides, batch, head)
    per_row = (batch.to(tl.int64) * H + head) * T + at
    peak, total = tl.load(lse + per_row), tl.load(delta + per_row)
    q_tile = load_rows(head_base(q, q_strides, batch, head), at, q_strides, D, BLOCK_D)
    d_out_tile = load_rows(
        head_base(d_out, d_out_strides, batch, head), at, d_out_strides, D_V, BLOCK_DV
    )
    nothing = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    acc, peak, total = _visit(
        nothing, peak, total, q_tile, d_out_tile, k_base, v_base, k_strides, v_strides, scale,
        at, first, last, column, spacing, start, listed, below, earlier, n_earlier,
        INSIDE, OUTSIDE, TAKEN, False, True, D, D_V, BLOCK_D, BLOCK_DV, BLOCK_N,
    )  # fmt: skip
    if any_bad(acc):
        acc, peak, total = _visit(
            nothing, peak, total, q_tile, d_out_tile, k_base, v_base, k_strides, v_strides, scale,
            at, first, last, column, spacing, start, listed, below, earlier, n_earlier,
            INSIDE, OUTSIDE, TAKEN, True, True, D, D_V, BLOCK_D, BLOCK_DV, BLOCK_N,
        )  # fmt: skip
    store_rows(
        head_base(d_q, d_q_strides, batch, head), at, row < length, acc * d_scale, d_q_strides,
        MERGES, D, BLOCK_D,
    )  # fmt: skip
