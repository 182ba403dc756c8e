"""How the learning rate moves over a run."""

from math import cos, pi

from sparse_tx.config import TrainingConfig


def share_of_peak(config: TrainingConfig, step: int, progress: float) -> float:
    """The share of the peak learning rate at the optimiser step ``step``, counted from 0.

    It rises linearly over ``warmup_steps``, and falls to ``final_lr_share`` as ``progress``, the
    share of the run that is done, goes from 0 to 1.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    done = min(max(progress, 0.0), 1.0)
    falls = 0.5 * (1 + cos(pi * done)) if config.schedule == "cosine" else 1 - done
    return warmup * (config.final_lr_share + (1 - config.final_lr_share) * falls)
