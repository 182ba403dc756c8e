"""Exact sparse attention in Triton kernels, for NVIDIA GPUs."""

from importlib.util import find_spec

import torch
from torch import Tensor

from sparse_tx.patterns import BlockLocal, Dense, Local, Pattern, Strided, Summary

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_WIDEST = 128
_PARTS = (Dense, Local, BlockLocal, Strided, Summary)

__all__ = ["attend", "why_not"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: tuple[Pattern, ...], scale: float) -> Tensor:
    from sparse_tx.attention.triton.launch import attend as launch

    return launch(q, k, v, heads, scale)
