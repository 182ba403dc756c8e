"""Training: the loop, the optimiser, the schedule."""

from sparse_tx.training.reporter import Outcome, Reporter
from sparse_tx.training.trainer import Trainer

__all__ = ["Outcome", "Reporter", "Trainer"]
