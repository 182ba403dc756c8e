"""Exact sparse attention by a native kernel for CPUs, compiled at first use.

``kernel.cpp`` computes, ``sweeps`` turns patterns into its arguments, ``build`` compiles and loads
it, ``operator`` makes it an operator of torch.
"""

from sparse_tx.attention.cpu.build import load_kernel, why_not
from sparse_tx.attention.cpu.operator import attend

__all__ = ["attend", "load_kernel", "why_not"]
