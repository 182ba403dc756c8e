"""From tensors to launches: the forward pass and the gradients, sweep by sweep."""

from contextlib import nullcontext
from math import log

import torch
from torch import Tensor

from sparse_tx.attention.derivatives import first_derivative_only
from sparse_tx.attention.triton import tuning
from sparse_tx.attention.triton.plan import Outside, Sweep, plan
from sparse_tx.patterns import Pattern

_LOG2_E = 1 / log(2)
_PRODUCT_ROWS = 64


def attend(q: Tensor, k: Tensor, v: Tensor, heads: tuple[Pattern, ...], scale: float) -> Tensor:
    """Attend with one pattern per head; see ``sparse_tx.attention.triton.attend``."""
    tiny = torch.finfo(torch.float32).tiny
    if scale < tiny:
        # The kernels look for the largest score before they scale, in float32.
        q, scale = (-q, -scale) if scale <= -tiny else (0 * q, 1.0)
    return _SparseAttention.apply(q, k, v, heads, scale)


class _SparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, heads, scale):
        sweeps = plan(heads, q.shape[2], q.device)
        merges = any(sweep.merges for sweep in sweeps)
        out = torch.empty_like(v, dtype=torch.float32 if merges else v.dtype)
        lse = q.new_empty(q.shape[:3], dtype=torch.float32)
        with _on(q.device):
            for sweep in sweeps:
                _forward(sweep, q, k, v, out, lse, scale)
        out = out.to(v.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.heads, ctx.scale = heads, scale
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx, d_out):
        q, k, v, out, lse = ctx.saved_tensors
        sweeps = plan(ctx.heads, q.shape[2], q.device)
        launches = [launch for sweep in sweeps for launch in _key_launches(sweep)]
        # Where several launches add up, they do so in float32.
        wide = torch.float32 if any(sweep.merges for sweep in sweeps) else q.dtype
        d_q = torch.empty_like(q, dtype=wide)
        wide = torch.float32 if any(adds for _, _, adds in launches) else q.dtype
        # Not every key is in a list: where that is all there is, the others' gradient is 0.
        unlisted = any(sweep.outside == Outside.LISTED and not sweep.inside for sweep in sweeps)
        empty_like = torch.zeros_like if unlisted else torch.empty_like
        d_k, d_v = empty_like(k, dtype=wide), empty_like(v, dtype=wide)
        with _on(q.device):
            delta = _row_products(out, d_out, lse)
            del out
            for sweep in sweeps:
                _query_gradient(sweep, q, k, v, d_out, lse, delta, d_q, ctx.scale)
            for launch in launches:
                _key_gradients(launch, q, k, v, d_out, lse, delta, d_k, d_v, ctx.scale)
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype), None, None


def _on(device: torch.device):
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _width(d: int) -> int:
    """The power of two, at least 16, to which a head dimension is padded in registers."""
    return max(16, 1 << (d - 1).bit_length())


def _sizes(q: Tensor, v: Tensor) -> dict[str, int]:
    D, D_v = q.shape[3], v.shape[3]
    return {"D": D, "D_V": D_v, "BLOCK_D": _width(D), "BLOCK_DV": _width(D_v)}


def _counts(sweep: Sweep, q: Tensor) -> tuple[int, ...]:
    """B, H, T, n_heads, spacing, list_width, n_earlier."""
    width = 0 if sweep.listed is None else sweep.listed.shape[1]
    n_earlier = 0 if sweep.earlier is None else len(sweep.earlier)
    return *q.shape[:3], sweep.n_heads, sweep.spacing, width, n_earlier


def _programs(sweep: Sweep, q: Tensor, length: int, block: str):
    """The grid: tiles over ``length`` of one column, for all columns, heads and batch entries."""
    others = sweep.spacing * sweep.n_heads * q.shape[0]
    return lambda shape: (-(-length // shape[block]) * others,)


def _column_length(sweep: Sweep, q: Tensor) -> int:
    return -(-q.shape[2] // sweep.spacing)


def _forward(sweep: Sweep, q, k, v, out, lse, scale: float) -> None:
    tuning.forward[_programs(sweep, q, _column_length(sweep, q), "BLOCK_M")](
        q, k, v, out, lse,
        sweep.heads, sweep.start, sweep.listed, sweep.listed_below, sweep.earlier,
        q.stride(), k.stride(), v.stride(), out.stride(),
        *_counts(sweep, q), scale * _LOG2_E, sweep.span,
        INSIDE=sweep.inside, OUTSIDE=int(sweep.outside), TAKEN=sweep.taken, MERGES=sweep.merges,
        **_sizes(q, v),
    )  # fmt: skip


def _row_products(out: Tensor, d_out: Tensor, like: Tensor) -> Tensor:
    B, H, T, D_v = out.shape
    delta = torch.empty_like(like)
    tuning.row_products[(B * H * -(-T // _PRODUCT_ROWS),)](
        out, d_out, delta, out.stride(), d_out.stride(), H, T,
        D_V=D_v, BLOCK_DV=_width(D_v), BLOCK_M=_PRODUCT_ROWS,
    )  # fmt: skip
    return delta


def _query_gradient(sweep: Sweep, q, k, v, d_out, lse, delta, d_q, scale: float) -> None:
    tuning.query_gradient[_programs(sweep, q, _column_length(sweep, q), "BLOCK_M")](
        q, k, v, d_out, lse, delta, d_q,
        sweep.heads, sweep.start, sweep.listed, sweep.listed_below, sweep.earlier,
        q.stride(), k.stride(), v.stride(), d_out.stride(), d_q.stride(),
        *_counts(sweep, q), scale * _LOG2_E, scale, sweep.span,
        INSIDE=sweep.inside, OUTSIDE=int(sweep.outside), TAKEN=sweep.taken, MERGES=sweep.merges,
        **_sizes(q, v),
    )  # fmt: skip


def _key_launches(sweep: Sweep) -> list[tuple[Sweep, int, bool]]:
    """The launches for the keys' gradients: sweep, source, and whether they add to others."""
    if sweep.outside == Outside.COLUMN:
        return [(sweep, 2, sweep.merges)]
    inside = [(sweep, 0, False)] if sweep.inside else []
    return inside + [(sweep, 1, True)] * (sweep.outside == Outside.LISTED)


def _key_gradients(launch, q, k, v, d_out, lse, delta, d_k, d_v, scale: float) -> None:
    sweep, source, adds = launch
    length = sweep.longest_list if source == 1 else _column_length(sweep, q)
    if length == 0:
        return
    tuning.key_gradients[_programs(sweep, q, length, "BLOCK_N")](
        q, k, v, d_out, lse, delta, d_k, d_v,
        sweep.heads, sweep.after, sweep.listed, sweep.listed_below, sweep.earlier,
        q.stride(), k.stride(), v.stride(), d_out.stride(), d_k.stride(), d_v.stride(),
        *_counts(sweep, q), scale * _LOG2_E, scale, sweep.span,
        SOURCE=source, TAKEN=sweep.taken, ADDS=adds,
        **_sizes(q, v),
    )  # fmt: skip
