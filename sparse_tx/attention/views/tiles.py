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

from collections import Counter
from math import log, prod

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_tx.attention.derivatives import first_derivative_only
from sparse_tx.attention.views.plan import Sweep, Tile, is_dense, plan
from sparse_tx.patterns import Pattern

LOG2_E = 1 / log(2)
# A row without keys has this maximum instead of -inf, from which -inf can be subtracted.
NO_KEY = -1e30
# Positions taken at once where only rows matter.
_PIECE = 64


def attend_causally(
    q: Tensor, k: Tensor, v: Tensor, heads: tuple[Pattern, ...], scale: float
) -> Tensor:
    """Attend along causal pairs, as ``attend`` of the engine says."""
    dense = all(is_dense(pattern, q.shape[2]) for pattern in heads)
    # torch scales after it has masked with -inf, which a scale that is not positive turns around.
    if dense and scale >= torch.finfo(torch.float32).tiny and has_fused_kernel(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return _SparseAttention.apply(q, k, v, heads, scale)


def workspace_bytes(
    heads: tuple[Pattern, ...], B: int, T: int, D: int, D_v: int
) -> tuple[int, int]:
    """Bytes held in float32 beside inputs and results, forward and backward, on a CPU."""
    if all(is_dense(pattern, T) for pattern in heads) and D_v == D:
        return 0, 0
    forward: Counter[str] = Counter()
    backward: Counter[str] = Counter({"delta": B * len(heads) * T})
    for sweep in plan(heads, B, T, max(D, D_v), torch.device("cpu")):
        # The first dimensions of an empty tensor's view are those of every buffer.
        n = prod(sweep.view(torch.empty(B, len(heads), T, 1, device="meta")).shape[:3])
        prefix = max(tile.n_prefix for tile in sweep.tiles)
        for tile in sweep.tiles:
            rows, keys = tile.rows.stop - tile.rows.start, tile.n_keys
            shared = {"k": keys * D, "v": keys * D_v, "q": rows * D}
            own = {"scores": rows * keys, "out": rows * D_v}
            forward |= Counter({name: n * size for name, size in (shared | own).items()})
            own = {
                "scores": keys * max(rows, D),
                "d_scores": keys * max(rows, D_v),
                "d_out": rows * max(D, D_v),
                "prefix": prefix * (D + D_v),
            }
            backward |= Counter({name: n * size for name, size in (shared | own).items()})
    return 4 * forward.total(), 4 * backward.total()


def has_fused_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
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
        lse = q.new_empty((*q.shape[:3], 1), dtype=compute_dtype(q))
        work = _Workspace(q)
        for sweep in plan(heads, B, T, max(q.shape[-1], v.shape[-1]), q.device):
            _forward(sweep, work, q, k, v, out, lse, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.heads, ctx.scale = heads, scale
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx, d_out):
        q, k, v, out, lse = ctx.saved_tensors
        B, _, T, _ = q.shape
        delta = row_products(d_out, out, compute_dtype(q))
        # From here on only delta is needed of out, which is as large as a gradient.
        del out
        ctx.maybe_clear_saved_tensors()
        # Sums of many tiles' contributions are kept in the precision of the computation.
        sweeps = plan(ctx.heads, B, T, max(q.shape[-1], v.shape[-1]), q.device)
        owned = isinstance(sweeps, tuple) and all(s.writes_first or s.merges for s in sweeps)
        dq, dk, dv = (torch.empty_like(x, dtype=compute_dtype(x)) for x in (q, k, v))
        if not owned:
            dk.zero_(), dv.zero_()
        work = _Workspace(q)
        for sweep in sweeps:
            _backward(sweep, work, q, k, v, delta, lse, d_out, dq, dk, dv, ctx.scale)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def row_products(d_out: Tensor, out: Tensor, dtype: torch.dtype) -> Tensor:
    """dO_i . O_i of every row, ``(B, H, T, 1)``.

    It equals sum_j P_ij dP_ij over all keys j, so that the softmax's backward pass in one tile
    needs no other tile. Taken piece by piece: the elementwise product would be as large as out.
    """
    delta = d_out.new_empty((*d_out.shape[:3], 1), dtype=dtype)
    for start in range(0, d_out.shape[2], _PIECE):
        here = (..., slice(start, start + _PIECE), slice(None))
        delta[here] = (d_out[here].to(dtype) * out[here].to(dtype)).sum(-1, keepdim=True)
    return delta


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Workspace:
    """Buffers that are allocated once for a pass and shaped anew for every tile.

    Fresh memory costs a page fault every 4 KiB, more than the arithmetic on it. Shapes recur, and
    their views are kept: making a view takes as long as a small operation on it.
    """

    def __init__(self, like: Tensor):
        self._like = like
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[str, dict[tuple, tuple[Tensor, Tensor]]] = {}

    def take(self, name: str, groups: torch.Size, rows: int, width: int) -> tuple[Tensor, Tensor]:
        """Two views of one contiguous tensor, its content undefined.

        They are ``(*groups, rows, width)`` and ``(N, rows, width)`` with N the product of groups.
        """
        views = self._views.setdefault(name, {})
        shape = (*groups, rows, width)
        found = views.get(shape)
        if found is None:
            size = prod(shape)
            buffer = self._buffers.get(name)
            if buffer is None or buffer.numel() < size:
                views.clear()
                buffer = self._like.new_empty(size, dtype=compute_dtype(self._like))
                self._buffers[name] = buffer
            flat = buffer[:size].view(prod(groups), rows, width)
            found = views[shape] = flat.view(shape), flat
        return found

    def pack(self, name: str, rows: Tensor) -> Tensor:
        """Copy ``(*groups, rows, D)`` from wherever it lies into ``(N, rows, D)``."""
        packed, flat = self.take(name, rows.shape[:-2], *rows.shape[-2:])
        packed.copy_(rows)
        return flat


class _PackedKeys:
    """Keys and values of one tile after another, packed as ``(N, prefix then interval, D)``.

    The prefix only grows; the interval is appended to where tiles begin at the same key. With
    ``grads``, gradients of the interval are added to these at once; those of the prefix, whose
    keys lie scattered, are summed here and added at the end.
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
        self.grads = [sweep.view(grad) for grad in grads] if grads else []
        self.prefix = sweep.prefix
        groups = self.sources[0].shape[:3]
        widest = max(tile.n_keys for tile in sweep.tiles)
        self.packed = [
            work.take(f"packed {n}", groups, widest, x.shape[-1])
            for n, x in enumerate(self.sources)
        ]
        most = max(tile.n_prefix for tile in sweep.tiles)
        self.prefix_grads = [
            work.take(f"prefix grad {n}", groups, most, x.shape[-1])[0].zero_()
            for n, x in enumerate(self.grads)
        ]
        self.n_prefix = self.low = self.high = 0
        # Rows of grads that hold sums; the first to come to others writes them.
        self.written = [0 if sweep.writes_first else sweep.length] * 2

    def load(self, tile: Tile) -> list[Tensor]:
        """Make the tile's keys stand side by side; returns keys and values, ``(N, keys, D)``."""
        start, stop, at = tile.keys.start, tile.keys.stop, tile.n_prefix
        if at > self.n_prefix:
            chosen = self.prefix[self.n_prefix : at]
            self._place(self.n_prefix, [x[..., chosen, :] for x in self.sources])
        if at > self.n_prefix or start != self.low:
            self.n_prefix, self.low, self.high = at, start, start
        if stop > self.high:
            new = [x.narrow(3, self.high, stop - self.high) for x in self.sources]
            self._place(at + self.high - start, new)
            self.high = stop
        return [x.narrow(1, 0, tile.n_keys) for _, x in self.packed]

    def _place(self, at: int, columns: list[Tensor]) -> None:
        for (packed, _), new in zip(self.packed, columns, strict=True):
            packed.narrow(3, at, new.shape[3]).copy_(new)

    def add_grad(self, of: int, tile: Tile, new: Tensor) -> None:
        """Add a tile's gradient ``(B, G, H, keys, D)`` of the keys (0) or the values (1)."""
        grad, at, start, stop = self.grads[of], tile.n_prefix, tile.keys.start, tile.keys.stop
        if at:
            self.prefix_grads[of].narrow(3, 0, at).add_(new.narrow(3, 0, at))
        split = max(start, min(self.written[of], stop))
        if split > start:
            grad.narrow(3, start, split - start).add_(new.narrow(3, at, split - start))
        if stop > split:
            grad.narrow(3, split, stop - split).copy_(
                new.narrow(3, at + split - start, stop - split)
            )
            self.written[of] = stop

    def release(self) -> None:
        """Hand over the gradients that are still held here."""
        for grad, held in zip(self.grads, self.prefix_grads, strict=True):
            if held.shape[3]:
                grad.index_add_(3, self.prefix[: held.shape[3]], held.to(grad.dtype))


def _scores(work: _Workspace, tile: Tile, q: Tensor, k: Tensor, scale: float, groups):
    """Scaled products in units of log 2, -inf where a pair is not allowed.

    Two views, ``(*groups, rows, keys)`` and ``(N, rows, keys)``.
    """
    scores, flat = work.take("scores", groups, q.shape[1], tile.n_keys)
    torch.baddbmm(flat, q, k.mT, beta=0, alpha=scale * LOG2_E, out=flat)
    n_masked = tile.bias.shape[-1]
    scores.narrow(4, tile.n_keys - n_masked, n_masked).add_(tile.bias)
    return scores, flat


def _forward(sweep: Sweep, work: _Workspace, q, k, v, out, lse, scale: float) -> None:
    q, out, lse = sweep.view(q), sweep.view(out), sweep.view(lse)
    keys = _PackedKeys(sweep, work, k, v, None)
    groups = q.shape[:3]
    for tile in sweep.tiles:
        start, rows = tile.rows.start, tile.rows.stop - tile.rows.start
        packed_q = work.pack("q", q.narrow(3, start, rows))
        packed_k, packed_v = keys.load(tile)
        scores, weights = _scores(work, tile, packed_q, packed_k, scale, groups)
        peak = scores.amax(-1, keepdim=True)
        if tile.has_empty_rows:
            peak.clamp_(min=NO_KEY)
        total = scores.sub_(peak).exp2_().sum(-1, keepdim=True)
        if tile.has_empty_rows:
            total.clamp_(min=torch.finfo(total.dtype).tiny)
        part, part_flat = work.take("out", groups, rows, v.shape[-1])
        torch.bmm(weights, packed_v, out=part_flat)
        part.div_(total)
        part_lse = peak.add_(total.log2_())
        out_here, lse_here = out.narrow(3, start, rows), lse.narrow(3, start, rows)
        if sweep.merges:
            merged = torch.logaddexp2(lse_here, part_lse)
            part.mul_((part_lse - merged).exp2_())
            part.add_(out_here * (lse_here - merged).exp2_())
            part_lse = merged
        out_here.copy_(part)
        lse_here.copy_(part_lse)


def _backward(
    sweep: Sweep, work: _Workspace, q, k, v, delta, lse, d_out, dq, dk, dv, scale: float
) -> None:
    q, delta, lse, d_out, dq = (sweep.view(x) for x in (q, delta, lse, d_out, dq))
    keys = _PackedKeys(sweep, work, k, v, (dk, dv))
    groups = q.shape[:3]
    for tile in sweep.tiles:
        start, rows = tile.rows.start, tile.rows.stop - tile.rows.start
        packed_q = work.pack("q", q.narrow(3, start, rows))
        packed_d_out = work.pack("d_out", d_out.narrow(3, start, rows))
        packed_k, packed_v = keys.load(tile)

        scores, weights = _scores(work, tile, packed_q, packed_k, scale, groups)
        scores.sub_(lse.narrow(3, start, rows)).exp2_()
        # Gradients wait where something else will be, or was: dv, dq and dk in the places of
        # d_scores, d_out and the weights.
        d_keys, flat = work.take("d_scores", groups, tile.n_keys, v.shape[-1])
        torch.bmm(weights.mT, packed_d_out, out=flat)
        keys.add_grad(1, tile, d_keys)
        d_scores, d_flat = work.take("d_scores", groups, rows, tile.n_keys)
        torch.bmm(packed_d_out, packed_v.mT, out=d_flat)
        d_scores.sub_(delta.narrow(3, start, rows)).mul_(scores)
        d_queries, flat = work.take("d_out", groups, rows, q.shape[-1])
        torch.baddbmm(flat, d_flat, packed_k, beta=0, alpha=scale, out=flat)
        dq_here = dq.narrow(3, start, rows)
        dq_here.add_(d_queries) if sweep.merges else dq_here.copy_(d_queries)
        d_keys, flat = work.take("scores", groups, tile.n_keys, q.shape[-1])
        torch.baddbmm(flat, d_flat.mT, packed_q, beta=0, alpha=scale, out=flat)
        keys.add_grad(0, tile, d_keys)
    keys.release()
