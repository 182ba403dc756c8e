"""Exact sparse attention by a native kernel for CPUs, compiled at first use.

``kernel.cpp`` computes, ``library`` knows where it is, ``sweeps`` turns patterns into its
arguments, ``operator`` makes it an operator of torch.
"""

import torch

from sparse_tx.attention.cpu.library import why_no_kernel
from sparse_tx.attention.cpu.operator import attend, workspace_bytes
from sparse_tx.attention.cpu.sweeps import PARTS
from sparse_tx.patterns import Pattern

__all__ = ["attend", "why_not", "workspace_bytes"]


def why_not(
    device: torch.device, dtype: torch.dtype, D: int, D_v: int, heads: tuple[Pattern, ...]
) -> str | None:
    """Say in a sentence why this engine cannot run on such inputs, or None if it can.

    The first call in a process loads the kernel, and compiles it if none has before.
    """
    if device.type != "cpu":
        return f"its kernel is for CPUs, and the tensors are on '{device.type}'"
    unknown = [part for head in heads for part in head.parts if type(part) not in PARTS]
    if unknown:
        return f"it has no kernel for the pattern '{unknown[0]}'"
    return why_no_kernel()
