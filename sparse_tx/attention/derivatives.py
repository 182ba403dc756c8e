"""What hand-written backward passes do when someone would differentiate through them."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from sparse_tx.errors import UserError


def refuse_second_derivatives(*_) -> None:
    """The derivative of a gradient: an error, where torch would take it for zero in silence."""
    raise UserError(
        "attention has first derivatives only, except by engine='reference'; choose that where"
        " gradients are themselves differentiated"
    )


class _Gradient(torch.autograd.Function):
    """A gradient as it is; its own derivative is an error."""

    @staticmethod
    def forward(ctx, gradient, *inputs):
        return gradient.view_as(gradient)

    backward = staticmethod(refuse_second_derivatives)


def first_derivative_only(backward: Callable) -> Callable:
    """Decorate the ``backward`` of an autograd function that saves its inputs."""

    @wraps(backward)
    def checked(ctx, *gradients):
        if not torch.is_grad_enabled():  # nobody asked for create_graph
            # Under checkpointing, saved tensors can be asked for once only: by ``backward``.
            return backward(ctx, *gradients)
        inputs = [x for x in ctx.saved_tensors if x.requires_grad]
        with torch.no_grad():
            found = backward(ctx, *gradients)
        return tuple(
            _Gradient.apply(x, *inputs, *gradients) if isinstance(x, Tensor) else x for x in found
        )

    return checked
