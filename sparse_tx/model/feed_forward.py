"""The feed-forward of relu(x)^2 without bias on a CPU, a hidden layer at a time that stays in its
cache.

Forward and backward, ``FEED_FORWARD_TOKENS`` tokens are taken at a time, and everything as wide as
the hidden layer but one kept tensor lives in small buffers that are written over and over: memory
is not asked for anew, and a product reads what the one before it has just written.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparse_tx.config.model import FEED_FORWARD_TOKENS


def gains_by_cache(x: Tensor) -> bool:
    """Whether ``x`` is where chunks pay, and in a type in which gradients may be summed over them.

    Half precision, that of autocast too, has too few digits for sums of many terms.
    """
    exact = x.dtype in (torch.float32, torch.float64)
    return exact and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def squared_relu_feed_forward(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """``relu(x @ expand.T)^2 @ contract.T``, differentiable once.

    Kept for the backward pass are ``x`` and relu of the hidden layer; nothing without gradients.

    Args:
        x: ``(..., C)``.
        expand: ``(F, C)``, of the same type.
        contract: ``(C, F)``, of the same type.
    """
    inputs = (x, expand, contract)
    if torch.is_grad_enabled() and any(one.requires_grad for one in inputs):
        gradient_goes_here, positive = _Hidden.apply(*inputs)
        return _Output.apply(gradient_goes_here, positive, contract.detach())
    rows = x.reshape(-1, x.shape[-1])
    out, hidden = torch.empty_like(rows), _buffer(rows, len(expand))
    for here in _chunks(rows):
        some = hidden[: len(rows[here])]
        torch.mm(rows[here], expand.T, out=some).relu_()
        torch.mm(some.mul_(some), contract.T, out=out[here])
    return out.view(x.shape)


class _Hidden(torch.autograd.Function):
    """relu(x @ expand.T), and the backward pass of the whole feed-forward.

    Recomputation ends at the last tensor that is kept. The second product is in a function of its
    own, so that it comes after that, and is not computed again for nothing. The gradient of its
    result comes by way of an output that is as large and holds nothing.
    """

    @staticmethod
    def forward(ctx, x, expand, contract):
        rows = x.reshape(-1, x.shape[-1])
        positive = rows.new_empty(len(rows), len(expand))
        for here in _chunks(rows):
            torch.mm(rows[here], expand.T, out=positive[here]).relu_()
        ctx.save_for_backward(x, expand, contract, positive)
        ctx.mark_non_differentiable(positive)
        ctx.set_materialize_grads(False)  # zeros as wide as the hidden layer
        return x.new_zeros(()).expand(x.shape), positive

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, _):
        x, expand, contract, positive = ctx.saved_tensors
        wants_x, wants_expand, wants_contract = ctx.needs_input_grad
        rows, d_rows = (one.reshape(-1, x.shape[-1]) for one in (x, d_out))
        d_x = torch.empty_like(rows) if wants_x else None
        d_expand = torch.zeros_like(expand) if wants_expand else None
        d_contract = torch.zeros_like(contract) if wants_contract else None
        squares = _buffer(rows, len(expand)) if wants_contract else None
        halves = _buffer(rows, len(expand)) if wants_x or wants_expand else None
        for here in _chunks(rows):
            kept, d_some = positive[here], d_rows[here]
            if wants_contract:
                square = torch.mul(kept, kept, out=squares[: len(kept)])
                d_contract.addmm_(d_some.T, square)
            if halves is not None:  # of the hidden layer's gradient; products below double it
                half = torch.mm(d_some, contract, out=halves[: len(kept)]).mul_(kept)
            if wants_expand:
                d_expand.addmm_(half.T, rows[here], alpha=2)
            if wants_x:
                d_x[here].addmm_(half, expand, beta=0, alpha=2)
        return d_x.view(x.shape) if wants_x else None, d_expand, d_contract


class _Output(torch.autograd.Function):
    """positive^2 @ contract.T; its gradient is handed on as it comes."""

    @staticmethod
    def forward(ctx, gradient_goes_here, positive, contract):
        out = positive.new_empty(len(positive), len(contract))
        squares = _buffer(positive, positive.shape[1])
        for here in _chunks(positive):
            kept = positive[here]
            square = torch.mul(kept, kept, out=squares[: len(kept)])
            torch.mm(square, contract.T, out=out[here])
        return out.view(gradient_goes_here.shape)

    @staticmethod
    def backward(ctx, d_out):
        return d_out, None, None


def _buffer(rows: Tensor, width: int) -> Tensor:
    """Room for the hidden layer, of ``width``, of a chunk of ``rows``."""
    return rows.new_empty(min(FEED_FORWARD_TOKENS, len(rows)), width)


def _chunks(rows: Tensor) -> Iterator[slice]:
    for start in range(0, len(rows), FEED_FORWARD_TOKENS):
        yield slice(start, start + FEED_FORWARD_TOKENS)
