"""``sparse_attention``: one call for every pattern and every engine."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparse_tx.attention import cpu, reference, views
from sparse_tx.errors import UserError, nearest
from sparse_tx.patterns import Layer, Pattern, parse_pattern

ENGINES: dict[str, Callable[..., Tensor]] = {
    "reference": reference.attend,
    "views": views.attend,
    "cpu": cpu.attend,
}


def resolve_engine(engine: str, device: torch.device) -> tuple[str, str]:
    """Choose the engine that runs on ``device``: its name, and the reason in a few words.

    Raises:
        UserError: no engine has this name, or the named one cannot run there.
    """
    if engine == "auto":
        if device.type != "cpu":
            return "views", "runs on every device"
        reason = cpu.why_not()
        return ("views", reason) if reason else ("cpu", "the native kernel, fastest on a CPU")
    if engine not in ENGINES:
        raise UserError(
            f"unknown attention engine '{engine}': {nearest(engine, ENGINES)}the engines are auto,"
            f" {', '.join(ENGINES)}"
        )
    if engine == "cpu":
        if device.type != "cpu":
            raise UserError(
                f"the attention engine 'cpu' got tensors on {device}; choose engine='views' there"
            )
        cpu.load_kernel()
    return engine, "asked for"


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | Layer | str,
    *,
    engine: str = "auto",
    scale: float | None = None,
) -> Tensor:
    """Attend causally along a sparse pattern; differentiable in q, k and v.

    Args:
        q: queries ``(B, H, T, D)`` with any strides; float16, bfloat16, float32 or float64.
        k: keys, of the same shape.
        v: values ``(B, H, T, D_v)``.
        pattern: one layer's patterns, as an object or in notation. A summary that is not pinned to
            a sub-block takes the one of each head.
        engine: ``auto``, ``reference`` (the quadratic oracle), ``views`` (any device) or ``cpu`` (a
            native kernel, which needs a C++ compiler at first use).
        scale: factor of the scores; ``1 / sqrt(D)`` when not given.

    Returns:
        ``(B, H, T, D_v)``. A query that may read no key at all gets zeros.

    Raises:
        UserError: shapes, types or devices that do not match; heads that the pattern cannot share
            out; a pattern of several layers; an unknown engine.
    """
    _check(q, k, v)
    heads = _layer(pattern).heads(q.shape[1])
    name, _ = resolve_engine(engine, q.device)
    return ENGINES[name](q, k, v, heads, q.shape[-1] ** -0.5 if scale is None else scale)


def _layer(pattern: Pattern | Layer | str) -> Layer:
    if isinstance(pattern, Layer):
        return pattern
    if isinstance(pattern, Pattern):
        return Layer((pattern,))
    stack = parse_pattern(pattern)
    if len(stack.layers) > 1:
        raise UserError(
            f"'{pattern}' describes {len(stack.layers)} layers, but attention is one layer; choose"
            " one with parse_pattern(...).layer(n)"
        )
    return stack.layers[0]


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise UserError(f"{name} has shape {tuple(x.shape)}; it must be (B, H, T, D)")
        if not x.is_floating_point() or x.dtype != q.dtype:
            raise UserError(
                f"{name} is {x.dtype} and q is {q.dtype}; all three must share one floating type"
            )
        if x.device != q.device:
            raise UserError(f"{name} is on {x.device} and q on {q.device}; use one device")
    if k.shape != q.shape:
        raise UserError(f"k has shape {tuple(k.shape)}, q {tuple(q.shape)}; they must be equal")
    if v.shape[:3] != q.shape[:3]:
        raise UserError(
            f"v has shape {tuple(v.shape)}, q {tuple(q.shape)}; all but the last must be equal"
        )
    if 0 in q.shape or 0 in v.shape:
        raise UserError(f"q has shape {tuple(q.shape)}; no dimension may be empty")
