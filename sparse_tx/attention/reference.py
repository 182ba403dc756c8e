"""The oracle: masked softmax attention over the whole (T, T) square, as the definition reads.

Slow and quadratic in memory on purpose. It computes in the inputs' own precision (use float64 for a
reference) and imports no other engine, so that nothing can be wrong in both.
"""

import torch
from torch import Tensor

from sparse_tx.masks import dense_mask
from sparse_tx.patterns import Pattern


def why_not(
    device: torch.device, dtype: torch.dtype, D: int, D_v: int, heads: tuple[Pattern, ...]
) -> None:
    """Say why this engine cannot run on such inputs: it always can."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: tuple[Pattern, ...],
    scale: float,
    causal: bool = True,
) -> Tensor:
    """Attend with one pattern per head; ``q, k, v`` and the result are ``(B, H, T, D)``.

    A query that may read no key at all gets zeros, and gives no gradient.
    """
    T = q.shape[-2]
    mask = torch.stack(
        [dense_mask(pattern, T, device=q.device, causal=causal) for pattern in heads]
    )
    scores = (q @ k.transpose(-1, -2)) * scale  # (B, H, T, T)
    # The largest finite negative number, not -inf: a row without keys must not become NaN.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).masked_fill(~mask, 0)
    return weights @ v
