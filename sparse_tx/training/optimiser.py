"""Which optimiser moves which weights."""

import torch
from torch import nn

from sparse_tx.config import TrainingConfig
from sparse_tx.training.muon import Muon


def make_optimisers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) over all parameters, or Muon for the blocks' matrices.

    Embeddings, norms and biases are not decayed: their scale is their meaning, or is undone by the
    normalisation that follows. Each parameter group keeps its peak learning rate as ``peak_lr``.
    """
    matrices, tables, others = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or "embedding" in name or "positions" in name:
            others.append(parameter)
        elif name.startswith("blocks."):
            matrices.append(parameter)
        else:
            tables.append(parameter)
    kept = {"params": others, "weight_decay": 0.0}
    by_muon = config.optimiser == "muon"
    decayed = {"params": tables if by_muon else matrices + tables}
    decayed["weight_decay"] = config.weight_decay
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group for group in (decayed, kept) if group["params"]],
            lr=config.lr,
            betas=config.betas,
            eps=1e-8,
            fused=True,
        )
    ]
    if by_muon:
        optimisers.append(Muon(matrices, lr=config.matrix_lr, weight_decay=config.weight_decay))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak_lr"] = group["lr"]
    return optimisers
