"""The optimiser: AdamW, with weight decay on matrices only."""

import torch
from torch import nn

from sparse_tx.config import TrainingConfig


def make_optimiser(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over all parameters.

    Embeddings, norms and biases are not decayed: their scale is their meaning, or is undone by the
    normalisation that follows.
    """
    tables = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if "embedding" in name or "positions" in name
    }
    decayed, kept = [], []
    for parameter in model.parameters():
        is_matrix = parameter.dim() >= 2 and id(parameter) not in tables
        (decayed if is_matrix else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8, fused=True)
