"""What both families of kernels share: rows of a head, bad rows, and pairs to leave out.

Positions are 32-bit, offsets into tensors 64-bit: in long sequences positions times a row's width
pass 2^31.
"""

import triton
import triton.language as tl


@triton.jit
def head_base(base, strides, batch, head):
    """Where the ``(T, D)`` matrix of one head of one batch entry begins."""
    return base + batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]


@triton.jit
def load_rows(base, at, strides, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load the rows ``at`` of one head, wherever they lie: ``(len(at), BLOCK_D)``.

    Columns past ``D`` are 0. All of ``at`` must be positions of the sequence.
    """
    d = tl.arange(0, BLOCK_D)
    offsets = at.to(tl.int64)[:, None] * strides[2] + d.to(tl.int64)[None, :] * strides[3]
    if D == BLOCK_D:
        rows = tl.load(base + offsets)
    else:
        rows = tl.load(base + offsets, mask=(d < D)[None, :], other=0.0)
    return rows


@triton.jit
def store_rows(
    base, at, keep, rows, strides, ADD: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Store, or add, those rows of which ``keep`` is true at the positions ``at``."""
    d = tl.arange(0, BLOCK_D)
    offsets = at.to(tl.int64)[:, None] * strides[2] + d.to(tl.int64)[None, :] * strides[3]
    mask = keep[:, None] & (d < D)[None, :]
    if ADD:
        rows += tl.load(base + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(base + offsets, rows.to(base.dtype.element_ty), mask=mask)


@triton.jit
def any_bad(rows):
    """Whether any element is NaN or infinite: a scalar, 0 or 1."""
    return tl.max(tl.max(tl.where(tl.abs(rows) < float("inf"), 0, 1), 1), 0)


@triton.jit
def marks(rows):
    """0 for every row that is finite throughout, NaN for every other: ``(len(rows),)`` float32."""
    return tl.sum(rows.to(tl.float32) * 0.0, 1)


@triton.jit
def cleaned(rows):
    """The rows, with 0 in place of NaN and infinities."""
    wide = rows.to(tl.float32)
    return tl.where(tl.abs(wide) < float("inf"), wide, 0.0).to(rows.dtype)


@triton.jit
def elsewhere(q_at, k_at, below, earlier, n_earlier):
    """Pairs of a column that a list (``below``) or an earlier stride's column has computed.

    ``q_at`` and ``k_at`` are positions that broadcast against each other.
    """
    found = k_at > q_at
    if below is not None:
        found = found | (tl.load(below + k_at + 1) > tl.load(below + k_at))
    if earlier is not None:
        for n in range(n_earlier):
            found = found | ((q_at - k_at) % tl.load(earlier + n) == 0)
    return found
