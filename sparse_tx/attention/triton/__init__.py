"""Exact sparse attention in Triton kernels, for NVIDIA GPUs: forward, backward, in place.

``plan`` turns patterns into tables of O(T) integers, ``by_query`` and ``by_key`` are the kernels,
``tuning`` their tile shapes, and ``launch`` puts them together. No T x T mask and no permuted copy
of q, k or v is made. Triton itself is imported at the first call.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from sparse_tx.patterns import BlockLocal, Dense, Local, Pattern, Strided, Summary

__all__ = ["attend", "why_not"]

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_PARTS = (Dense, Local, BlockLocal, Strided, Summary)
# Wider rows of two gradients do not fit a program's registers.
_WIDEST = 128


@torch.compiler.disable
def attend(q: Tensor, k: Tensor, v: Tensor, heads: tuple[Pattern, ...], scale: float) -> Tensor:
    """Attend with one pattern per head; ``q, k, v`` and the result are ``(B, H, T, D)``.

    Differentiable, and accumulated in float32. The same inputs give the same bits, as long as the
    tile shapes timed at first use are the same: Triton's cache keeps them. A query that may read no
    key at all gets zeros, and gives no gradient. A NaN or an infinity stays in the rows that may
    see it.
    """
    from sparse_tx.attention.triton.launch import attend as launch

    return launch(q, k, v, heads, scale)


def why_not(
    device: torch.device, dtype: torch.dtype, D: int, D_v: int, heads: tuple[Pattern, ...]
) -> str | None:
    """Say in a sentence why this engine cannot run on such inputs, or None if it can."""
    if dtype not in _DTYPES:
        return f"its kernels take bfloat16, float16 and float32, not {dtype}"
    if max(D, D_v) > _WIDEST:
        return f"its kernels hold head dimensions up to {_WIDEST}, not {max(D, D_v)}"
    unknown = [part for head in heads for part in head.parts if type(part) not in _PARTS]
    if unknown:
        return f"it has no kernel for the pattern '{unknown[0]}'"
    if find_spec("triton") is None:
        return "the package triton is not installed"
    import triton

    if triton.knobs.runtime.interpret:
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return f"it needs an NVIDIA GPU, and the tensors are on '{device.type}'"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return (
            f"it needs a GPU of compute capability 8.0 or above, and this one has {major}.{minor}"
        )
    return None
