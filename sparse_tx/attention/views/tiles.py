"""Computing the tiles of a plan, forward and backward.

A tile's queries and keys are packed into a workspace of a few MiB that serves one tile after
another, so that products and softmax traffic stay in cache and memory grows linearly in T. A tile
sees all keys of its queries that its sweep has, so softmax needs no rescaling within a sweep. Where
a pattern needs several sweeps, their disjoint results are merged by log-sum-exp,

    lse = log(exp(lse_1) + exp(lse_2)),   out = exp(lse_1 - lse) out_1 + exp(lse_2 - lse) out_2,

and each sweep's backward pass uses the merged out and lse, with scores computed again (the
recomputation of FlashAttention, Dao et al. 2022, section 3.1). Low-precision inputs are computed in
float32.

Scores, and lse with them, are in units of log 2: exp2 takes masked scores at full speed, while the
exp of torch's CPU build is 15 times slower on arguments whose result is 0.
"""

from math import log, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_tx.attention.views.plan import Sweep, Tile, is_dense, plan
from sparse_tx.patterns import Pattern

_LOG2_E = 1 / log(2)
# A row without keys has this maximum instead of -inf, from which -inf can be subtracted.
_NO_KEY = -1e30
# Extra keys that the workspace holds, so that overlapping intervals are packed once, not per tile.
_SLACK = 128
# Positions taken at once where only rows matter.
_PIECE = 256


def attend(q: Tensor, k: Tensor, v: Tensor, heads: tuple[Pattern, ...], scale: float) -> Tensor:
    """Attend with one pattern per head; ``q, k, v`` and the result are ``(B, H, T, D)``.

    Differentiable. A query that may read no key at all gets zeros, and gives no gradient.
    """
    if all(is_dense(pattern, q.shape[2]) for pattern in heads) and _has_fused_kernel(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return _SparseAttention.apply(q, k, v, heads, scale)


def _has_fused_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether torch's own dense attention takes these without materialising T x T scores.

    For anything doubtful it does not: torch then falls back to the square in silence.
    """
    if q.shape != v.shape or any(x.stride(-1) != 1 for x in (q, k, v)):
        return False
    half = q.dtype in (torch.float16, torch.bfloat16)
    return q.device.type == "cpu" or (half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128)


class _SparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, heads, scale):
        B, _, T, _ = q.shape
        out = torch.empty_like(v)  # the first sweep of every head writes all rows of it
        lse = q.new_empty((*q.shape[:3], 1), dtype=_compute_dtype(q))
        work = _Workspace(q)
        for sweep in plan(heads, B, T, q.device):
            _forward(sweep, work, q, k, v, out, lse, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.heads, ctx.scale = heads, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):
        q, k, v, out, lse = ctx.saved_tensors
        B, _, T, _ = q.shape
        delta = _row_products(d_out, out, _compute_dtype(q))
        # From here on only delta is needed of out, which is as large as a gradient.
        del out
        ctx.maybe_clear_saved_tensors()
        # Sums of many tiles' contributions are kept in the precision of the computation.
        sweeps = plan(ctx.heads, B, T, q.device)
        owned = isinstance(sweeps, tuple) and all(s.writes_first or s.merges for s in sweeps)
        dq, dk, dv = (torch.empty_like(x, dtype=_compute_dtype(x)) for x in (q, k, v))
        if not owned:
            dk.zero_(), dv.zero_()
        work = _Workspace(q)
        for sweep in sweeps:
            _backward(sweep, work, q, k, v, delta, lse, d_out, dq, dk, dv, ctx.scale)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _row_products(d_out: Tensor, out: Tensor, dtype: torch.dtype) -> Tensor:
    """dO_i . O_i of every row, ``(B, H, T, 1)``.

    It equals sum_j P_ij dP_ij over all keys j, so that the softmax's backward pass in one tile
    needs no other tile. Taken piece by piece: the elementwise product would be as large as out.
    """
    delta = d_out.new_empty((*d_out.shape[:3], 1), dtype=dtype)
    for start in range(0, d_out.shape[2], _PIECE):
        here = (..., slice(start, start + _PIECE), slice(None))
        delta[here] = (d_out[here].to(dtype) * out[here].to(dtype)).sum(-1, keepdim=True)
    return delta


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Workspace:
    """Buffers that are allocated once for a pass and shaped anew for every tile.

    Fresh memory costs a page fault every 4 KiB, more than the arithmetic on it.
    """

    def __init__(self, like: Tensor):
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor of this shape, its content undefined."""
        size = prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._like.new_empty(size, dtype=_compute_dtype(self._like))
            self._buffers[name] = buffer
        return buffer[:size].view(shape)

    def pack(self, name: str, rows: Tensor) -> Tensor:
        """Copy ``(B, G, H, rows, D)`` from wherever it lies into ``(B * G * H, rows, D)``."""
        packed = self.take(name, *rows.shape)
        packed.copy_(rows)
        return packed.view(-1, *rows.shape[-2:])


class _PackedKeys:
    """Keys and values of one tile after another, packed as ``(N, prefix then interval, D)``.

    Consecutive tiles share most of their keys, so the interval is appended to while it fits. With
    ``grads``, the gradients of what is packed are summed at the same places, and added to ``grads``
    when their keys leave.
    """

    def __init__(
        self,
        sweep: Sweep,
        work: _Workspace,
        k: Tensor,
        v: Tensor,
        grads: tuple[Tensor, Tensor] | None,
    ):
        self.sources = [sweep.view(k), sweep.view(v)]  # (B, G, H, M, D)
        self.grad_targets = [sweep.view(grad) for grad in grads] if grads else []
        self.prefix = sweep.prefix
        widest = max(tile.n_keys for tile in sweep.tiles)
        n_keys = 0 if self.prefix is None else len(self.prefix)
        self.capacity = min(widest + _SLACK, n_keys + sweep.length)
        self.packed = [
            work.take(f"packed {n}", *x.shape[:3], self.capacity, x.shape[-1])
            for n, x in enumerate(self.sources)
        ]
        self.grads = [
            work.take(f"packed grad {n}", *x.shape[:3], self.capacity, x.shape[-1])
            for n, x in enumerate(self.grad_targets)
        ]
        self.n_prefix = self.low = self.high = 0
        self.fresh = 0  # from here on, the packed keys are those that the last tile appended
        self.written = 0 if sweep.writes_first else sweep.length  # rows of grads that hold sums

    def load(self, tile: Tile) -> slice:
        """Make the tile's keys stand side by side; returns where."""
        start, stop = tile.keys.start, tile.keys.stop
        appends = (
            tile.n_prefix == self.n_prefix
            and (start == self.low or self.n_prefix == 0)
            and self.low <= start <= self.high
            and self.n_prefix + stop - self.low <= self.capacity
        )
        if not appends:
            self._release_interval()
            self.fresh = self.n_prefix
            if tile.n_prefix > self.n_prefix:
                chosen = self.prefix[self.n_prefix : tile.n_prefix]
                self._append(self.n_prefix, [x[..., chosen, :] for x in self.sources])
                self.n_prefix = tile.n_prefix
            self.low = self.high = start
        else:
            self.fresh = self.n_prefix + self.high - self.low
        if stop > self.high:
            at = self.n_prefix + self.high - self.low
            self._append(at, [x[..., self.high : stop, :] for x in self.sources])
            self.high = stop
        first = 0 if self.n_prefix else start - self.low
        return slice(first, self.n_prefix + stop - self.low)

    def _append(self, at: int, columns: list[Tensor]) -> None:
        for packed, new in zip(self.packed, columns, strict=True):
            packed[..., at : at + new.shape[-2], :].copy_(new)

    def select(self, where: slice) -> list[Tensor]:
        """The loaded keys and values: two of ``(N, keys, D)``."""
        return [x.flatten(0, 2)[:, where] for x in self.packed]

    def add_grads(self, where: slice, dk: Tensor, dv: Tensor) -> None:
        """Add a tile's gradients, ``(N, keys, D)`` each, to those of earlier tiles.

        Keys that this tile appended have none yet: theirs are written, not added.
        """
        old = self.fresh - where.start
        for grad, new in zip(self.grads, (dk, dv), strict=True):
            grad = grad.flatten(0, 2)[:, where]
            grad[:, :old].add_(new[:, :old])
            grad[:, old:] = new[:, old:]

    def _release_interval(self) -> None:
        # In a sweep that owns its gradients, the first to come is written, not added to zeros.
        split = max(self.low, min(self.written, self.high))
        old, end = self.n_prefix + split - self.low, self.n_prefix + self.high - self.low
        for grad, target in zip(self.grads, self.grad_targets, strict=True):
            target[..., self.low : split, :].add_(grad[..., self.n_prefix : old, :])
            target[..., split : self.high, :] = grad[..., old:end, :]
        self.written = max(self.written, self.high)

    def release(self) -> None:
        """Hand over all gradients that are still held here."""
        self._release_interval()
        for grad, target in zip(self.grads, self.grad_targets, strict=True):
            if self.n_prefix:
                held = grad[..., : self.n_prefix, :].to(target.dtype)
                target.index_add_(-2, self.prefix[: self.n_prefix], held)


def _scores(work: _Workspace, tile: Tile, q: Tensor, k: Tensor, scale: float, groups) -> Tensor:
    """Scaled products in units of log 2, ``(N, rows, keys)``; -inf where a pair is not allowed."""
    scores = work.take("scores", len(q), q.shape[1], k.shape[1])
    torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=scale * _LOG2_E, out=scores)
    masked = scores.view(*groups, *scores.shape[1:])[..., -tile.bias.shape[-1] :]
    masked.add_(tile.bias)
    return scores


def _forward(sweep: Sweep, work: _Workspace, q, k, v, out, lse, scale: float) -> None:
    q, out, lse = sweep.view(q), sweep.view(out), sweep.view(lse)
    keys = _PackedKeys(sweep, work, k, v, None)
    groups = q.shape[:3]
    for tile in sweep.tiles:
        here = (..., tile.rows, slice(None))
        packed_q = work.pack("q", q[here])
        packed_k, packed_v = keys.select(keys.load(tile))
        scores = _scores(work, tile, packed_q, packed_k, scale, groups)
        peak = scores.amax(-1, keepdim=True)
        if tile.has_empty_rows:
            peak.clamp_(min=_NO_KEY)
        weights = scores.sub_(peak).exp2_()
        total = weights.sum(-1, keepdim=True)
        if tile.has_empty_rows:
            total.clamp_(min=torch.finfo(total.dtype).tiny)
        part = work.take("out", *packed_q.shape[:2], v.shape[-1])
        torch.bmm(weights, packed_v, out=part)
        part = part.div_(total).view(*groups, *part.shape[1:])
        part_lse = peak.add_(total.log2_()).view(*groups, -1, 1)
        if sweep.merges:
            merged = torch.logaddexp2(lse[here], part_lse)
            part.mul_((part_lse - merged).exp2_())
            part.add_(out[here] * (lse[here] - merged).exp2_())
            part_lse = merged
        out[here] = part
        lse[here] = part_lse


def _backward(
    sweep: Sweep, work: _Workspace, q, k, v, delta, lse, d_out, dq, dk, dv, scale: float
) -> None:
    q, delta, lse, d_out, dq = (sweep.view(x) for x in (q, delta, lse, d_out, dq))
    keys = _PackedKeys(sweep, work, k, v, (dk, dv))
    groups = q.shape[:3]
    for tile in sweep.tiles:
        here = (..., tile.rows, slice(None))
        packed_q = work.pack("q", q[here])
        packed_d_out = work.pack("d_out", d_out[here])
        where = keys.load(tile)
        packed_k, packed_v = keys.select(where)
        n, rows, n_keys = len(packed_q), packed_q.shape[1], packed_k.shape[1]

        scores = _scores(work, tile, packed_q, packed_k, scale, groups)
        weights = scores.sub_(lse[here].reshape(n, rows, 1)).exp2_()
        tile_dv = work.take("dv", n, n_keys, packed_v.shape[2])
        torch.bmm(weights.transpose(1, 2), packed_d_out, out=tile_dv)
        d_scores = work.take("d_scores", n, rows, n_keys)
        torch.bmm(packed_d_out, packed_v.transpose(1, 2), out=d_scores)
        d_scores.sub_(delta[here].reshape(n, rows, 1)).mul_(weights)
        tile_dq = work.take("dq", *packed_q.shape)
        torch.baddbmm(tile_dq, d_scores, packed_k, beta=0, alpha=scale, out=tile_dq)
        tile_dq = tile_dq.view(*groups, *tile_dq.shape[1:])
        dq[here] = dq[here].add_(tile_dq) if sweep.merges else tile_dq
        tile_dk = work.take("dk", n, n_keys, packed_k.shape[2])
        torch.baddbmm(tile_dk, d_scores.transpose(1, 2), packed_q, beta=0, alpha=scale, out=tile_dk)
        keys.add_grads(where, tile_dk, tile_dv)
    keys.release()
