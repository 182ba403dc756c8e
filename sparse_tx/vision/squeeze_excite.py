"""Squeeze-and-Excitation: a gate for every channel from the means of all (arXiv:1709.01507)."""

import torch
from torch import Tensor, nn

from sparse_tx.vision.checks import require_maps, require_reduction


def bottleneck(channels: int, reduction: int, bias: bool) -> nn.Sequential:
    """Two linear layers with a ReLU between them, ``channels / reduction`` wide inside."""
    return nn.Sequential(
        nn.Linear(channels, channels // reduction, bias=bias),
        nn.ReLU(),
        nn.Linear(channels // reduction, channels, bias=bias),
    )


def gate(x: Tensor, logits: Tensor) -> Tensor:
    """``x`` times the sigmoid of ``logits``."""
    return x * torch.sigmoid(logits)


class SqueezeExcite(nn.Module):
    """``x * sigmoid(W2 relu(W1 mean(x)))``, with the mean over positions (section 3, eq. 2 to 4).

    Its place is after the last norm of a residual branch, before the sum. It has
    ``2 C^2 / reduction`` weights, and ``C + C / reduction`` biases.

    Args:
        channels: C of the maps.
        reduction: how many times narrower the hidden layer is; it divides ``channels``.
        bias: whether the linear layers have biases, which the published 28.09 M need.

    Raises:
        UserError: ``reduction`` does not divide ``channels``, or one is no count.
    """

    def __init__(self, channels: int, reduction: int = 16, *, bias: bool = True):
        super().__init__()
        require_reduction(reduction, channels, "SqueezeExcite")
        self.channels, self.reduction, self.bias = channels, reduction, bias
        self.mlp = bottleneck(channels, reduction, bias)

    def logits(self, x: Tensor) -> Tensor:
        """What the sigmoid is taken of: ``(B, C, 1, 1)``."""
        return self.mlp(x.mean((2, 3)))[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """Gate the channels of ``x``, ``(B, C, H, W)``; the result has its shape and type."""
        require_maps(x, self.channels, "SqueezeExcite")
        return gate(x, self.logits(x))
