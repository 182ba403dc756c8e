"""From logits to the next token: filters, then a draw, both in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_tx.config import SamplingConfig
from sparse_tx.errors import UserError

# Relative: what exponentials and sums of a vocabulary may be off by. A token exactly at a bound
# must not be kept or lost for that.
_ROUNDING = 1e-12


def next_token_probabilities(logits: Tensor, settings: SamplingConfig) -> Tensor:
    """The distribution that the next token is drawn from.

    Filters apply in the order temperature, top_k, top_p, min_p; each sees what the one before left,
    with its probabilities scaled to sum to 1:

    * temperature divides the logits; 0 leaves only the most probable token;
    * top_k leaves the k most probable tokens;
    * top_p leaves the fewest most probable tokens whose probabilities sum to at least top_p (arXiv:
      1904.09751);
    * min_p leaves the tokens with at least min_p times the probability of the most probable one
      (arXiv:2407.01082).

    Of equally probable tokens the lower ids come first, so that exactly k tokens stay.

    Args:
        logits: ``(N, V)``, any floating type, finite.
        settings: the filters.

    Returns:
        ``(N, V)`` float64 on the logits' device; every row sums to 1.

    Raises:
        UserError: a logit is infinite or NaN.
    """
    logits = logits.double()
    if not logits.isfinite().all():
        raise UserError(
            "the model's output is not finite (NaN or infinite logits): its weights are broken;"
            " take an earlier checkpoint"
        )
    if settings.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1)
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)  # (N, V)
    # Relative to the most probable token's weight, 1. Subtracted before it is divided: a tiny
    # temperature then gives minus infinity at worst, and no NaN.
    weights = ((ordered - ordered[:, :1]) / settings.temperature).exp()
    if settings.top_k is not None:
        weights[:, settings.top_k :] = 0
    if settings.top_p is not None and settings.top_p < 1:
        running = weights.cumsum(-1)
        before = running.roll(1, -1)
        before[:, 0] = 0
        enough = settings.top_p * (1 - _ROUNDING) * running[:, -1:]
        weights = weights.masked_fill(before >= enough, 0)
    if settings.min_p is not None:
        weights = weights.masked_fill(weights < settings.min_p * (1 - _ROUNDING), 0)
    probabilities = weights / weights.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter_(-1, ids, probabilities)


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one token per row, by inverting the cumulative distribution at one uniform number.

    Args:
        probabilities: ``(N, V)`` float64; rows need not sum to 1 exactly.
        generators: one per row, on the CPU, so that a seed means the same on every device.

    Returns:
        ``(N,)`` int64 on the CPU. A token of probability 0 is never drawn.
    """
    numbers = [torch.rand(1, dtype=torch.float64, generator=g) for g in generators]
    running = probabilities.cpu().cumsum(-1)
    # The numbers are at most 1 - 2^-53, so that also the rounded product is below the total.
    target = torch.stack(numbers) * running[:, -1:]
    return torch.searchsorted(running, target, right=True).squeeze(-1)
