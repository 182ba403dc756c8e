"""Cross-entropy of a linear head without logits for all tokens at once."""

import torch
import torch.nn.functional as F
from torch import Tensor


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients of each chunk are taken right after its loss, while its logits exist."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk):
        losses = hidden.new_empty(len(targets), dtype=torch.float32)
        ctx.weight_dtype = weight.dtype
        wants_grad = hidden.requires_grad or weight.requires_grad
        d_hidden = torch.empty_like(hidden) if wants_grad else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_grad else None
        for start in range(0, len(targets), chunk):
            here = slice(start, start + chunk)
            logits = (hidden[here] @ weight.to(hidden.dtype).T).float()  # (chunk, V)
            log_probabilities = F.log_softmax(logits, dim=-1)
            losses[here] = F.nll_loss(log_probabilities, targets[here], reduction="none")
            if wants_grad:
                d_logits = log_probabilities.exp_()
                d_logits[torch.arange(len(d_logits)), targets[here]] -= 1
                d_hidden[here] = d_logits.to(hidden.dtype) @ weight.to(hidden.dtype)
                d_weight += d_logits.T @ hidden[here].float()
        ctx.save_for_backward(d_hidden, d_weight)
        return losses.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_total):
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * d_total, (d_weight * d_total).to(ctx.weight_dtype), None, None


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Sum of the cross-entropies, in nats, of ``softmax(hidden @ weight.T)`` against ``targets``.

    Args:
        hidden: ``(n, C)``, any floating type; losses are computed in float32.
        weight: the head, ``(V, C)``.
        targets: ``(n,)`` int64.
        chunk: tokens whose logits exist at one time.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, chunk)
