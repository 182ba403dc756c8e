"""``sparse_attention``: one call for every pattern and every engine.

An engine is a module or package with two functions. ``attend(q, k, v, heads, scale)`` computes.
``why_not(device, dtype, D, D_v, heads)`` says why it cannot on such inputs, or None; everything
that decides it is known when a model is built. Those of ``_BOTH_WAYS`` also take ``causal=False``.
"""

from functools import cache
from numbers import Real
from types import ModuleType

import torch
from torch import Tensor

from sparse_tx.attention import cpu, flex, reference, self_check, triton, views
from sparse_tx.errors import UserError, UserTypeError, nearest
from sparse_tx.patterns import Layer, Pattern
from sparse_tx.patterns.given import PatternLike, as_stack

ENGINES: dict[str, ModuleType] = {
    "reference": reference,
    "views": views,
    "cpu": cpu,
    "flex": flex,
    "triton": triton,
}
# What ``auto`` tries, best first; the last one can always run.
_ON_CPU = ("cpu", "views")
_ELSEWHERE = ("triton", "flex", "views")
_MERITS = {
    "cpu": "the native kernel, fastest on a CPU",
    "triton": "fused kernels, which passed their self-check on this GPU",
}
# Engines whose kernels a compiler makes for the GPU at hand: ``auto`` has them prove themselves.
_SELF_CHECKED = ("triton", "flex")
# Engines that compute without the triangle; where it is dropped, ``auto`` is the first.
_BOTH_WAYS = ("views", "reference")
LARGEST_SCALE = torch.finfo(torch.float32).max / 2
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_engine_name(engine: str) -> None:
    """Raise a ``UserError`` unless ``engine`` is ``auto`` or the name of an engine."""
    if not isinstance(engine, str):
        raise UserTypeError(
            f"engine is {engine!r}; it must be one of the names auto, {', '.join(ENGINES)}"
        )
    if engine != "auto" and engine not in ENGINES:
        raise UserError(
            f"unknown attention engine '{engine}': {nearest(engine, ENGINES)}the engines are auto,"
            f" {', '.join(ENGINES)}"
        )


def resolve_engine(
    engine: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    D: int,
    D_v: int,
    heads: tuple[Pattern, ...],
    causal: bool = True,
) -> tuple[str, str]:
    """Choose the engine for such inputs: its name, and the reason in words.

    ``auto`` takes the best one that can run, and says why a better one cannot. Kernels compiled
    for a GPU have to pass a self-check there, once in a process for every ``dtype``, ``D`` and
    ``D_v``. An engine that is asked for by name is taken at its word.

    Args:
        engine: ``auto`` or a name.
        device: where q, k and v are.
        dtype: their type; under autocast, the one that it gives them.
        D: head dimension of queries and keys.
        D_v: head dimension of values.
        heads: the pattern of every head.
        causal: whether queries read up to themselves only.

    Raises:
        UserError: no engine has this name, or the named one cannot run on such inputs.
    """
    check_engine_name(engine)
    if not causal:
        return _resolve_both_ways(engine)
    inputs = (device, dtype, D, D_v, heads)
    if engine != "auto":
        reason = ENGINES[engine].why_not(*inputs)
        if reason:
            raise UserError(
                f"the attention engine '{engine}' cannot run here: {reason}; or choose"
                " engine='views', which always can"
            )
        return engine, "asked for"
    reasons = []
    *better, last = _ON_CPU if device.type == "cpu" else _ELSEWHERE
    for name in better:
        reason = ENGINES[name].why_not(*inputs)
        if not reason and name in _SELF_CHECKED:
            reason = _failed_self_check(name, device, dtype, D, D_v)
        if not reason:
            return name, "; ".join(reasons) or _MERITS[name]
        reasons.append(f"{name}: {reason}")
    return last, "; ".join(reasons)


def _resolve_both_ways(engine: str) -> tuple[str, str]:
    """Choose the engine where there is no triangle."""
    if engine == "auto":
        return _BOTH_WAYS[0], "the fastest that computes without the triangle"
    if engine not in _BOTH_WAYS:
        raise UserError(
            f"the attention engine '{engine}' is causal only; without the triangle choose"
            f" {' or '.join(map(repr, _BOTH_WAYS))}, or leave engine='auto'"
        )
    return engine, "asked for"


@cache
def _failed_self_check(
    name: str, device: torch.device, dtype: torch.dtype, D: int, D_v: int
) -> str | None:
    failure = self_check.failure_of(
        ENGINES[name].attend, reference.attend, device=device, dtype=dtype, D=D, D_v=D_v
    )
    return failure and f"its self-check on this GPU failed: {failure}"


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | Layer | str,
    *,
    engine: str = "auto",
    scale: float | None = None,
    causal: bool = True,
) -> Tensor:
    """Attend along a sparse pattern; differentiable in q, k and v.

    Args:
        q: queries ``(B, H, T, D)`` with any strides; float16, bfloat16, float32 or float64.
        k: keys, of the same shape.
        v: values ``(B, H, T, D_v)``.
        pattern: one layer's patterns, as an object or in notation. A summary that is not pinned to
            a sub-block takes the one of each head. In a graph that ``torch.compile`` may not break,
            an object.
        engine: ``auto``; ``reference`` (the quadratic oracle); ``views`` (any device); ``cpu`` (a
            native kernel, which needs a C++ compiler at first use); ``triton`` (NVIDIA GPUs); or
            ``flex`` (torch's FlexAttention: GPUs, and CPUs without gradients). ``auto`` takes
            ``cpu`` on a CPU and ``triton``, then ``flex``, on a GPU, as far as they can run and
            their kernels pass a self-check there, else ``views``; see ``resolve_engine``.
        scale: factor of the scores, a finite number; ``1 / sqrt(D)`` when not given.
        causal: whether no query reads a later key. Without the triangle, a pattern relates
            positions in both directions, as those of a map: by ``views`` or ``reference``.

    Returns:
        ``(B, H, T, D_v)``. A query that may read no key at all gets zeros.

    Raises:
        UserError: shapes or devices that do not match; empty tensors; heads that the pattern
            cannot share out; a pattern of several layers, or of maps only where ``causal``; a
            scale that is not finite; an engine that is unknown or cannot run on such inputs. It is
            a ``ValueError``.
        UserTypeError: arguments of the wrong type; tensors that are not dense, of one type and
            floating-point. It is a ``TypeError`` too.
    """
    _check(q, k, v)
    scale = _scale(scale, q.shape[3])
    layer = _layer(pattern)
    if causal:
        layer.check_causal()
    heads = layer.heads(q.shape[1])
    name, _ = resolve_engine(
        engine,
        device=q.device,
        dtype=q.dtype,
        D=q.shape[3],
        D_v=v.shape[3],
        heads=heads,
        causal=causal,
    )
    if causal:
        return ENGINES[name].attend(q, k, v, heads, scale)
    return ENGINES[name].attend(q, k, v, heads, scale, causal=False)


def workspace_bytes(
    engine: str, heads: tuple[Pattern, ...], *, B: int, T: int, D: int, D_v: int
) -> tuple[int, int]:
    """Bytes that an engine holds beside inputs and results, forward and backward, in float32.

    Of engines whose kernels run on GPUs it is taken to be nothing.

    Args:
        engine: a name, not ``auto``.
        heads: the pattern of every head.
        B: batch entries.
        T: positions.
        D: head dimension of queries and keys.
        D_v: head dimension of values.

    Raises:
        UserError: no engine has this name; or it is ``reference``, which nobody runs for its cost.
    """
    check_engine_name(engine)
    if engine in ("auto", "reference"):
        raise UserError(f"the memory of engine='{engine}' is not known; name another engine")
    of_engine = getattr(ENGINES[engine], "workspace_bytes", None)
    return of_engine(heads, B, T, D, D_v) if of_engine else (0, 0)


def _layer(pattern: PatternLike) -> Layer:
    if isinstance(pattern, Layer):  # as models call it, at every step
        return pattern
    stack = as_stack(pattern)
    if len(stack.layers) > 1:
        raise UserError(
            f"'{pattern}' describes {len(stack.layers)} layers, but attention is one layer; choose"
            " one with parse_pattern(...).layer(n)"
        )
    return stack.layers[0]


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise UserTypeError(f"{name} is of type {type(x).__name__}; it must be a torch.Tensor")
        if x.layout != torch.strided or x.is_nested:
            raise UserTypeError(
                f"{name} is {'nested' if x.is_nested else x.layout}; it must be a dense tensor, as"
                " to_dense() or to_padded_tensor() give"
            )
        if x.dim() != 4:
            raise UserError(f"{name} has shape {tuple(x.shape)}; it must be (B, H, T, D)")
        if x.dtype not in _DTYPES:
            raise UserTypeError(
                f"{name} is {x.dtype}; convert it to float16, bfloat16, float32 or float64"
            )
        if x.dtype != q.dtype:
            raise UserTypeError(
                f"{name} is {x.dtype} and q is {q.dtype}; convert them to one type, as"
                f" {name}.to(q.dtype) does"
            )
        if x.device != q.device:
            raise UserError(f"{name} is on {x.device} and q on {q.device}; use one device")
        if x.is_meta:
            raise UserError(f"{name} is on the device 'meta', which holds no numbers; use another")
        if 0 in x.shape:
            raise UserError(f"{name} has shape {tuple(x.shape)}; no dimension may be empty")
    if k.shape != q.shape:
        raise UserError(f"k has shape {tuple(k.shape)}, q {tuple(q.shape)}; they must be equal")
    if v.shape[:3] != q.shape[:3]:
        raise UserError(
            f"v has shape {tuple(v.shape)}, q {tuple(q.shape)}; all but the last must be equal"
        )


def _scale(scale: float | None, D: int) -> float:
    if scale is None:
        return D**-0.5
    if not isinstance(scale, Real) or isinstance(scale, bool):
        raise UserTypeError(
            f"scale is of type {type(scale).__name__}; it must be a number, as scale.item() gives"
        )
    # Kernels multiply it by log2(e). NaN is not below the limit either.
    if not abs(scale) <= LARGEST_SCALE:
        raise UserError(f"scale is {scale!s:.12}; it must be finite, {LARGEST_SCALE:.4g} at most")
    return float(scale)
