"""What a model computes on its way from tokens to logits, seen from outside."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from sparse_tx.model import GPT


@torch.no_grad()
def stages(model: GPT, tokens: Tensor) -> list[Tensor]:
    """Run a model and keep what its layers got and what their heads gave.

    Args:
        model: in eval mode.
        tokens: ``(B, T)``.

    Returns:
        For each layer its input and the outputs of its heads, ``(B, T, C)`` each; then the input of
        the last norm, ``(B, T, C)``, and the logits, ``(B, T, V)``.
    """
    watched = [part for b in model.blocks for part in (b.attention_norm, b.attention.to_out)]
    watched.append(model.final_norm)
    pieces: list[list[Tensor]] = [[] for _ in watched]
    with ExitStack() as hooks:  # a hook's handle removes it at its exit
        for module, kept in zip(watched, pieces, strict=True):
            keep = _keeping(kept, tokens.shape[1])
            hooks.enter_context(module.register_forward_pre_hook(keep))
        logits = model(tokens)
    return [*(torch.cat(kept, dim=1) for kept in pieces), logits]


def _keeping(kept: list[Tensor], T: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook that keeps T positions of a module's input, however many pieces they come in.

    Where heads are taken in groups, a norm sees the same text again for each of them. Copies are
    kept, because such blocks overwrite their input.
    """

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if sum(piece.shape[1] for piece in kept) < T:
            kept.append(inputs[0].clone())

    return keep
