"""The factor that keeps float16 gradients within the range of that type."""

from typing import Any

import torch
from torch import Tensor

# Below it, losses themselves would be scaled down: then it is not the scale that overflows.
_FLOOR = 1.0


class LossScale:
    """Dynamic loss scale of precision fp16 (Micikevicius et al. 2017, arXiv:1710.03740).

    Losses are multiplied by it before the backward pass, and gradients divided after it. An
    overflow halves it, 2,000 steps without one double it. All scales are powers of two, so that
    scaling rounds nothing. In other precisions there is none, and nothing is scaled.
    """

    def __init__(self, precision: str, device: torch.device):
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    @property
    def value(self) -> float | None:
        """The scale; None where there is none."""
        return self._scaler.get_scale() if self._scaler.is_enabled() else None

    def scaled(self, loss: Tensor) -> Tensor:
        """``loss`` times the scale."""
        return self._scaler.scale(loss)

    def unscale(self, optimisers: list[torch.optim.Optimizer]) -> None:
        """Divide the gradients of all ``optimisers`` by the scale, in place.

        ``keep_pace`` or ``lower`` has to follow.
        """
        for optimiser in optimisers:
            self._scaler.unscale_(optimiser)

    def keep_pace(self) -> None:
        """Note a step without overflow, after which the scale may rise."""
        self._scaler.update()

    def lower(self) -> bool:
        """Note a step whose gradients are not finite; whether that may be for the scale.

        It is not if the scale was at its floor, or if there is none.
        """
        if not self._scaler.is_enabled():
            return False
        before = self._scaler.get_scale()
        self._scaler.update()
        if self._scaler.get_scale() < _FLOOR:
            self._scaler.update(_FLOOR)
        return self._scaler.get_scale() < before

    def state_dict(self) -> dict[str, Any]:
        """The scale and the steps since its last change; empty where there is none."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved scale."""
        self._scaler.load_state_dict(state)
