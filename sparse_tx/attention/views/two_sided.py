"""Attention without the triangle: groups of queries gathered, computed and put back.

The scores of a group are small enough to stay in cache, so that memory grows linearly in T. Every
set of a pattern is computed by itself, the pairs of earlier ones left out, and their results are
merged by log-sum-exp as in ``tiles``; the backward pass uses the merged log-sum-exp, with scores
computed again. Scores are in units of log 2, and low-precision inputs computed in float32, as
there.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_tx.attention.derivatives import first_derivative_only
from sparse_tx.attention.views.groups import SCORES, Group, groups_of
from sparse_tx.attention.views.plan import group_heads, split
from sparse_tx.attention.views.tiles import (
    LOG2_E,
    NO_KEY,
    compute_dtype,
    has_fused_kernel,
    row_products,
)
from sparse_tx.patterns import Dense, Pattern


def attend_both_ways(
    q: Tensor, k: Tensor, v: Tensor, heads: tuple[Pattern, ...], scale: float
) -> Tensor:
    """Attend with one pattern per head, to earlier and later keys; ``(B, H, T, D)`` each.

    Differentiable once. A query that may read no key at all gets zeros, and gives no gradient.
    """
    dense = all(Dense() in pattern.parts for pattern in heads)
    # torch scales after it has masked, as the causal engine has it.
    if dense and scale >= torch.finfo(torch.float32).tiny and has_fused_kernel(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    return _TwoSidedAttention.apply(q, k, v, heads, scale)


def _in_own_precision(run: Callable) -> Callable:
    """Multiply in the types of the factors, whatever autocast is on: sums are kept in float32."""

    @wraps(run)
    def wrapped(ctx, x, *rest):
        if not torch.amp.is_autocast_available(x.device.type):
            return run(ctx, x, *rest)
        with torch.autocast(x.device.type, enabled=False):
            return run(ctx, x, *rest)

    return wrapped


class _TwoSidedAttention(torch.autograd.Function):
    @staticmethod
    @_in_own_precision
    def forward(ctx, q, k, v, heads, scale):
        dtype = compute_dtype(q)
        out = torch.empty_like(v, dtype=dtype)
        lse = q.new_empty((*q.shape[:3], 1), dtype=dtype)
        for group, batch, chosen in _work(q, heads):
            here = (batch, chosen)
            _forward(group, *(x[here] for x in (q, k, v, out, lse)), scale)
        out = out.to(v.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.heads, ctx.scale = heads, scale
        return out

    @staticmethod
    @first_derivative_only
    @_in_own_precision
    def backward(ctx, d_out):
        q, k, v, out, lse = ctx.saved_tensors
        delta = row_products(d_out, out, lse.dtype)
        del out
        ctx.maybe_clear_saved_tensors()
        grads = [torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v)]
        for group, batch, chosen in _work(q, ctx.heads):
            here = (batch, chosen)
            inputs = (x[here] for x in (q, k, v, delta, lse, d_out, *grads))
            _backward(group, *inputs, ctx.scale)
        dq, dk, dv = (d.to(x.dtype) for d, x in zip(grads, (q, k, v), strict=True))
        return dq, dk, dv, None, None


def _work(q: Tensor, heads: tuple[Pattern, ...]) -> Iterator[tuple[Group, slice, slice]]:
    """Groups, each with the batch entries and heads that it is computed for at once."""
    B, _, T, _ = q.shape
    for pattern, members in group_heads(heads):
        for group in groups_of(pattern, T, B * len(members), q.device):
            n_scores = max(1, group.queries.numel() * group.keys.shape[1])
            for batch, chosen in split(members, B, SCORES // n_scores):
                yield group, batch, chosen


def _take(x: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Gather ``(b, h, T, D)`` at ``(G, R)`` positions: ``(b, h, G, R, D)``, contiguous."""
    return x[:, :, positions].to(dtype)


def _add(x: Tensor, positions: Tensor, new: Tensor) -> None:
    """Add ``(b, h, G, R, D)`` to ``(b, h, T, D)`` at ``(G, R)`` positions."""
    x.index_add_(2, positions.flatten(), new.flatten(2, 3))


def _put(x: Tensor, positions: Tensor, new: Tensor) -> None:
    x.index_copy_(2, positions.flatten(), new.flatten(2, 3))


def _scores(group: Group, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Scaled products in units of log 2, -inf where a pair is not allowed: ``(b, h, G, R, M)``."""
    scores = (q @ k.mT).mul_(scale * LOG2_E)
    return scores if group.bias is None else scores.add_(group.bias)


def _forward(group: Group, q, k, v, out, lse, scale: float) -> None:
    dtype = lse.dtype
    scores = _scores(group, _take(q, group.queries, dtype), _take(k, group.keys, dtype), scale)
    if group.keys.numel():
        peak = scores.amax(-1, keepdim=True)
        peak.masked_fill_(peak == -inf, NO_KEY)
    else:
        peak = scores.new_full((*scores.shape[:-1], 1), NO_KEY)
    total = scores.sub_(peak).exp2_().sum(-1, keepdim=True).clamp_(min=torch.finfo(dtype).tiny)
    part = (scores @ _take(v, group.keys, dtype)).div_(total)
    part_lse = peak.add_(total.log2_())
    if group.merges:
        before = _take(lse, group.queries, dtype)
        merged = torch.logaddexp2(before, part_lse)
        part.mul_((part_lse - merged).exp2_())
        part.add_(_take(out, group.queries, dtype).mul_(before.sub_(merged).exp2_()))
        part_lse = merged
    _put(out, group.queries, part)
    _put(lse, group.queries, part_lse)


def _backward(group: Group, q, k, v, delta, lse, d_out, dq, dk, dv, scale: float) -> None:
    dtype = lse.dtype
    q, delta, lse, d_out = (_take(x, group.queries, dtype) for x in (q, delta, lse, d_out))
    k, v = (_take(x, group.keys, dtype) for x in (k, v))
    weights = _scores(group, q, k, scale).sub_(lse).exp2_()
    _add(dv, group.keys, weights.mT @ d_out)
    d_scores = (d_out @ v.mT).sub_(delta).mul_(weights).mul_(scale)
    _add(dq, group.queries, d_scores @ k)
    _add(dk, group.keys, d_scores.mT @ q)
