"""Where the kernel is, and whether this machine can have it."""

from pathlib import Path

import torch

from sparse_tx.native import Kernel

KERNEL = Kernel("attention", Path(__file__).with_name("kernel.cpp"))


@torch.compiler.assume_constant_result  # nothing here is for torch.compile to trace
def why_no_kernel() -> str | None:
    """Why the kernel cannot be loaded, in a sentence; None where it can."""
    return KERNEL.why_not()
