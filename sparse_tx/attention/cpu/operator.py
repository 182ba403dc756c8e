"""The kernel as operators of torch, differentiable and known to ``torch.compile``.

Patterns are handed over in notation, since an operator's arguments are tensors, numbers and text.
"""

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from sparse_tx.attention.cpu.library import KERNEL
from sparse_tx.attention.cpu.sweeps import Problem, TensorView, phases
from sparse_tx.attention.derivatives import refuse_second_derivatives
from sparse_tx.native import thread_pool
from sparse_tx.patterns import Pattern, parse_pattern


def attend(q: Tensor, k: Tensor, v: Tensor, heads: tuple[Pattern, ...], scale: float) -> Tensor:
    """Attend with one pattern per head; ``q, k, v`` and the result are ``(B, H, T, D)``.

    Differentiable. A query that may read no key at all gets zeros, and gives no gradient. Half
    precision is computed in float32.
    """
    dtype = q.dtype
    if dtype not in (torch.float32, torch.float64):
        q, k, v = q.float(), k.float(), v.float()
    return _attention(q, k, v, "/".join(map(str, heads)), scale)[0].to(dtype)


def workspace_bytes(
    heads: tuple[Pattern, ...], B: int, T: int, D: int, D_v: int
) -> tuple[int, int]:
    """Bytes held in float32 beside inputs and results, forward and backward.

    What each thread works in, some 400 kB at D = 64, is not counted.
    """
    spill_rows = max(phase.n_spill_rows for phase in phases(heads, B, T))
    return 0, 4 * B * spill_rows * (D + D_v)


@lru_cache(maxsize=64)
def _heads(notation: str, H: int) -> tuple[Pattern, ...]:
    return parse_pattern(notation).layers[0].heads(H)


@torch.library.custom_op("sparse_tx::cpu_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, heads: str, scale: float) -> tuple[Tensor, Tensor]:
    """``out (B, H, T, D_v)`` and its log-sum-exp ``(B, H, T)`` in units of log 2."""
    out = _fresh(v)
    lse = q.new_empty(q.shape[:3])
    q, k, v = map(_with_dense_rows, (q, k, v))
    tensors = {"q": q, "k": k, "v": v, "out": out}
    _run("forward", tensors, lse, heads, scale)
    return out, lse


@_attention.register_fake
def _(q, k, v, heads, scale):
    return _empty_like(v), q.new_empty(q.shape[:3])


@torch.library.custom_op("sparse_tx::cpu_attention_backward", mutates_args=())
def _attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    heads: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    dq, dk, dv = map(_fresh, (q, k, v))
    d_out, q, k, v = map(_with_dense_rows, (d_out, q, k, v))
    tensors = {"q": q, "k": k, "v": v, "out": out, "d_out": d_out, "dq": dq, "dk": dk, "dv": dv}
    _run("backward", tensors, lse, heads, scale)
    return dq, dk, dv


@_attention_backward.register_fake
def _(d_out, q, k, v, out, lse, heads, scale):
    return _empty_like(q), _empty_like(k), _empty_like(v)


def _save_for_backward(ctx, inputs, output) -> None:
    q, k, v, ctx.heads, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, d_out, _):
    q, k, v, out, lse = ctx.saved_tensors
    return *_attention_backward(d_out, q, k, v, out, lse, ctx.heads, ctx.scale), None, None


_attention.register_autograd(_differentiate, setup_context=_save_for_backward)
_attention_backward.register_autograd(refuse_second_derivatives)


def _with_dense_rows(x: Tensor) -> Tensor:
    """The tensor itself if its last dimension is contiguous and no memory is shared, or a copy."""
    shared = any(step == 0 and size > 1 for step, size in zip(x.stride(), x.shape, strict=True))
    return x.contiguous() if shared or x.stride(-1) != 1 else x


def _empty_like(x: Tensor) -> Tensor:
    """As ``x`` lies in memory if its last dimension is contiguous then, else contiguous."""
    empty = torch.empty_like(x)
    if empty.stride(-1) == 1:
        return empty
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fresh(like: Tensor) -> Tensor:
    fresh = _empty_like(like)
    storage = fresh.untyped_storage()
    KERNEL.load().sparse_prefer_huge_pages(
        ctypes.c_void_p(storage.data_ptr()), ctypes.c_int64(storage.nbytes())
    )
    return fresh


def _run(name: str, tensors: dict[str, Tensor], lse: Tensor, notation: str, scale: float) -> None:
    q, v = tensors["q"], tensors["v"]
    B, H, T, D = q.shape
    heads = _heads(notation, H)
    problem = Problem(B=B, H=H, T=T, D=D, D_v=v.shape[-1], scale=scale, lse=lse.data_ptr())
    problem.n_threads = torch.get_num_threads()
    problem.parallel = thread_pool()
    for key, x in tensors.items():
        setattr(problem, key, TensorView(x.data_ptr(), *x.stride()[:3]))
    problem.grads_are_zero = not phases(heads, B, T)[0].reads_every_key
    if name == "backward" and problem.grads_are_zero:
        tensors["dk"].zero_(), tensors["dv"].zero_()
    suffix = "double" if q.dtype == torch.float64 else "float"
    function = getattr(KERNEL.load(), f"sparse_{name}_{suffix}")
    for phase in phases(heads, B, T):
        problem.sweeps = ctypes.addressof(phase.sweeps)
        problem.n_sweeps = len(phase.sweeps)
        if name == "backward":
            spill = q.new_zeros(B, phase.n_spill_rows, D + v.shape[-1])
            problem.spill, problem.n_spill_rows = spill.data_ptr(), phase.n_spill_rows
        if function(ctypes.byref(problem)):  # runs without the GIL
            raise MemoryError("the native kernel could not allocate its threads' working memory")
