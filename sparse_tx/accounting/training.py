"""What a whole training run costs in floating-point operations."""

from dataclasses import dataclass

from sparse_tx.accounting.flops import Flops, nominal_flops, useful_flops
from sparse_tx.accounting.heads import require_count
from sparse_tx.config import ModelConfig, TrainingConfig
from sparse_tx.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """A run of whole optimiser steps; evaluations and the optimiser's own work are not in it.

    Attributes:
        steps: optimiser steps.
        tokens: what they train on.
        useful: FLOPs with attention charged for the attended pairs alone.
        nominal: FLOPs with attention charged as if it were dense.
    """

    steps: int
    tokens: int
    useful: Flops
    nominal: Flops


def training_cost(
    model: ModelConfig, training: TrainingConfig, *, tokens: int | None = None
) -> TrainingCost:
    """Count the FLOPs of training ``model`` on ``tokens`` tokens, or for ``training.max_steps``.

    For the time at a stated or measured rate, ask ``cost.useful.seconds(flops_per_s)``.

    Args:
        model: the model.
        training: how many windows a step takes.
        tokens: rounded up to whole steps.

    Raises:
        UserError: ``tokens`` is below 1, or neither it nor ``max_steps`` is given.
    """
    per_step = model.seq_len * training.batch_size * training.accumulation
    if tokens is None and training.max_steps is None:
        raise UserError("the run ends by the clock, not by max_steps; give its length by tokens=")
    if tokens is None:
        steps = training.max_steps
    else:
        require_count("tokens", tokens, "tokens")
        steps = -(-tokens // per_step)
    passes = steps * training.accumulation
    return TrainingCost(
        steps=steps,
        tokens=steps * per_step,
        useful=useful_flops(model, batch=training.batch_size) * passes,
        nominal=nominal_flops(model, batch=training.batch_size) * passes,
    )
