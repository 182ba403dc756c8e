"""Weights for a model that has learned nothing yet, and so lets nothing through."""

import torch
from torch import nn

from sparse_tx.model import GPT


@torch.no_grad()
def draw_weights_if_untrained(model: GPT, seed: int = 0) -> str | None:
    """Draw all weights anew if some matrix is zero throughout, as a new model's head is.

    Through zeros nothing can be seen to leak, and nothing to arrive. What is drawn gives scores
    and activations of the order of 1. Weights of a trained model stay as they are.

    Args:
        model: changed in place.
        seed: of the draw.

    Returns:
        The name of the matrix, or None if nothing was changed.
    """
    zero = next(
        (name for name, p in model.named_parameters() if p.dim() > 1 and not p.any()),
        None,
    )
    if zero is None:
        return None
    generator = torch.Generator(model.token_embedding.weight.device).manual_seed(seed)

    def draw(weight: torch.Tensor, std: float) -> None:
        nn.init.normal_(weight, std=std, generator=generator)

    for module in model.modules():
        if isinstance(module, nn.Linear):
            draw(module.weight, module.in_features**-0.5)
            if module.bias is not None:
                draw(module.bias, 0.1)
        elif isinstance(module, nn.Embedding):
            draw(module.weight, 1)
    if model.positions is not None:
        for table in model.positions.tables:
            draw(table, 0.5)
    if model.lookups is not None:
        draw(model.lookups.table, model.config.lookups_per_token**-0.5)
    return zero
