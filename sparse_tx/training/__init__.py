"""Training: the loop, the optimiser, the schedule."""

from sparse_tx.training.trainer import Outcome, Reporter, Trainer

__all__ = ["Outcome", "Reporter", "Trainer"]
