"""Cross-entropy of a linear head without logits for all tokens at once."""

import torch
import torch.nn.functional as F
from torch import Tensor


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients of each chunk are taken right after its loss, while its logits exist."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk, wants_grad):
        # Autocast would round the logits, and with them every loss that is reported.
        with torch.autocast(hidden.device.type, enabled=False):
            exact = torch.promote_types(hidden.dtype, torch.float32)
            head = weight.to(exact)  # (V, C)
            total = hidden.new_zeros((), dtype=exact)
            # A half-precision hidden has a gradient of its own type, but only once it is scaled:
            # before, much of it may be too small for that type.
            d_hidden = torch.empty_like(hidden, dtype=exact) if wants_grad else None
            d_head = torch.zeros_like(head) if wants_grad else None
            for start in range(0, len(targets), chunk):
                here = slice(start, start + chunk)
                x = hidden[here].to(exact)
                log_probabilities = F.log_softmax(x @ head.T, dim=-1)  # (chunk, V)
                total += F.nll_loss(log_probabilities, targets[here], reduction="sum")
                if wants_grad:
                    d_logits = log_probabilities.exp_()
                    d_logits[torch.arange(len(x), device=x.device), targets[here]] -= 1
                    d_hidden[here] = d_logits @ head
                    d_head.addmm_(d_logits.T, x)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.save_for_backward(d_hidden, d_head)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_total):
        d_hidden, d_head = ctx.saved_tensors
        for_hidden, for_weight = ctx.dtypes
        # d_total, a loss scale perhaps, may itself be too large for half precision.
        d_hidden, d_head = (d_hidden * d_total).to(for_hidden), (d_head * d_total).to(for_weight)
        return d_hidden, d_head, None, None, None


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Sum of the cross-entropies, in nats, of ``softmax(hidden @ weight.T)`` against ``targets``.

    Args:
        hidden: ``(n, C)``, any floating type; computed in float32, or float64 if it is that.
        weight: the head, ``(V, C)``.
        targets: ``(n,)`` int64.
        chunk: tokens whose logits exist at one time.
    """
    wants_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, chunk, wants_grad)
