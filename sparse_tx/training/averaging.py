"""A moving average of the weights, which is evaluated and sampled in their place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of all parameters, w_avg <- d w_avg + (1 - d) w.

    The decay d grows to its full value over the first steps, so that the random initial weights
    are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.steps = 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 9))
        for name, parameter in model.named_parameters():
            self.weights[name].lerp_(parameter, 1 - decay)

    @contextmanager
    @torch.no_grad()
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Let the model hold the averaged weights for a while."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.copy_(self.weights[name])
        try:
            yield
        finally:
            for name, parameter in model.named_parameters():
                parameter.copy_(own[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by the names of the parameters."""
        return self.weights

    def load(self, weights: dict[str, Tensor], steps: int) -> None:
        """Continue from saved averaged weights and their number of updates."""
        self.steps = steps
        for name, weight in self.weights.items():
            weight.copy_(weights[name])
