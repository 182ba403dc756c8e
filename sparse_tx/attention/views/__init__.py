"""Exact sparse attention in plain torch, on any device: small dense products on views of q, k, v.

Two ways of looking at a sequence turn every pattern into short runs of neighbours:

* in *rows*, as it is, a tile of consecutive queries reads a short interval of keys (``local``,
  ``block``) and, before that, the summary columns of earlier blocks, which all of them read;
* in *columns* of the matrix whose rows are ``stride`` tokens wide, strided attention is ordinary
  causal attention down each column. The column is a view: no permuted copy of q, k or v is made.

``plan`` turns patterns into tiles, ``tiles`` computes them. Without the triangle, as in maps,
``groups`` and ``two_sided`` do.
"""

import torch
from torch import Tensor

from sparse_tx.attention.views.tiles import attend_causally, workspace_bytes
from sparse_tx.attention.views.two_sided import attend_both_ways
from sparse_tx.patterns import Pattern

__all__ = ["attend", "why_not", "workspace_bytes"]


def why_not(
    device: torch.device, dtype: torch.dtype, D: int, D_v: int, heads: tuple[Pattern, ...]
) -> None:
    """Say why this engine cannot run on such inputs: it always can."""


@torch.compiler.disable
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: tuple[Pattern, ...],
    scale: float,
    causal: bool = True,
) -> Tensor:
    """Attend with one pattern per head; ``q, k, v`` and the result are ``(B, H, T, D)``.

    Differentiable once. A query that may read no key at all gets zeros, and gives no gradient.
    """
    return (attend_causally if causal else attend_both_ways)(q, k, v, heads, scale)
