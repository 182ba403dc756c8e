"""Which optimiser moves which weights."""

import torch
from torch import nn

from sparse_tx.config import TrainingConfig
from sparse_tx.training.muon import Muon
from sparse_tx.training.row_adagrad import RowAdagrad


def make_optimisers(model: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov & Hutter 2019) over all parameters, or Muon for the blocks' matrices.

    A table of look-ups, of which a step changes few rows, has an optimiser of its own. Embeddings,
    norms and biases are not decayed: their scale is their meaning, or is undone by the
    normalisation that follows. Each parameter group keeps its peak learning rate as ``peak_lr``.
    """
    matrices, outside_blocks, others, lookups = [], [], [], []
    for name, parameter in model.named_parameters():
        if name.startswith("lookups."):
            lookups.append(parameter)
        elif parameter.dim() < 2 or "embedding" in name or "positions" in name:
            others.append(parameter)
        elif name.startswith("blocks."):
            matrices.append(parameter)
        else:
            outside_blocks.append(parameter)
    kept = {"params": others, "weight_decay": 0.0}
    by_muon = config.optimiser == "muon"
    decayed = {"params": outside_blocks if by_muon else matrices + outside_blocks}
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
    if lookups:
        optimisers.append(RowAdagrad(lookups, lr=config.table_lr))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak_lr"] = group["lr"]
    return optimisers


def clip_gradients(model: nn.Module, largest: float) -> float:
    """Scale all gradients down until their norm is at most ``largest``; returns what it was.

    The norm is that of the dense gradients. Sparse ones, of look-ups, are scaled as those are; what
    makes them non-finite makes those of the token embedding so too, to which the same sums go.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([g for g in gradients if not g.is_sparse])
    nn.utils.clip_grads_with_norm_(
        [p for p in model.parameters() if p.grad is not None and not p.grad.is_sparse],
        largest,
        norm,
    )
    share = (largest / (norm + 1e-6)).clamp(max=1.0)  # as for the others
    for gradient in gradients:
        if gradient.is_sparse:
            gradient._values().mul_(share)
    return norm.item()
