"""What a token costs a language model, given what stands before it."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_tx.errors import UserError
from sparse_tx.model import GPT


class LanguageModel(Protocol):
    """A causal language model as evaluation sees it.

    Attributes:
        seq_len: tokens of a window, which are the inputs that the model takes at once.
        start_token: the id that stands before the first token of a window. None where there is
            none: then the text's token before the window stands there, and the very first token of
            the text is not scored.
        start_in_words: the same for a person.
        tokens_at_once: tokens that one pass has room for.
    """

    seq_len: int
    start_token: int | None
    start_in_words: str
    tokens_at_once: int

    def token_losses(self, inputs: Tensor, targets: Tensor, wanted: Tensor) -> Tensor:
        """The negative log-probabilities of targets, in nats.

        Args:
            inputs: ``(B, T)`` int64, on the CPU.
            targets: what follows each of them, ``(B, T)`` int64.
            wanted: whose losses are asked for, ``(B, T)`` bool, true somewhere.

        Returns:
            ``(n,)`` for the n targets that are wanted, row by row; float32, or float64 where the
            model computes in that, on any device.
        """


def window_within(longest: int, seq_len: int | None) -> int:
    """Tokens of a window: ``longest``, which is what a model takes, unless fewer are asked for.

    Raises:
        UserError: more are asked for.
    """
    if seq_len is not None and seq_len > longest:
        raise UserError(
            f"seq_len is {seq_len:,}, and the model takes {longest:,} tokens at once; ask for no"
            " more, or leave it out"
        )
    return seq_len or longest


class TrainedModel:
    """A ``GPT`` as evaluation sees it: in eval mode while it computes, and left as it was.

    Args:
        model: on any device.
        seq_len: tokens of a window, at most the model's own, which it is if not given.

    Raises:
        UserError: ``seq_len`` is more.
    """

    start_in_words = "a window begins with the start symbol"
    tokens_at_once = 16_384  # as many as `score` takes

    def __init__(self, model: GPT, seq_len: int | None = None):
        self.model = model
        self.seq_len = window_within(model.config.seq_len, seq_len)
        self.start_token = model.start_token

    def token_losses(self, inputs, targets, wanted):
        model, was_training = self.model, self.model.training
        device = model.head_weight.device
        model.eval()
        try:
            hidden = model.hidden(inputs.to(device)).flatten(0, 1)  # (B T, C)
        finally:
            model.train(was_training)
        exact = torch.promote_types(hidden.dtype, torch.float32)
        head = model.head_weight.to(exact)  # (V, C)
        return losses_in_chunks(
            lambda rows: hidden[rows].to(exact) @ head.T,
            targets.to(device),
            wanted.to(device),
            chunk=model.config.chunk,
        )


def losses_in_chunks(
    logits_of: Callable[[Tensor], Tensor], targets: Tensor, wanted: Tensor, *, chunk: int
) -> Tensor:
    """Cross-entropies in nats, of some tokens at a time.

    Args:
        logits_of: gives the logits ``(n, V)`` of n tokens, by their numbers in the flat batch.
        targets: ``(B, T)`` int64.
        wanted: ``(B, T)`` bool, on the same device.
        chunk: tokens whose probabilities exist at one time.

    Returns:
        ``(n,)`` for the n targets that are wanted, row by row.
    """
    targets = targets.flatten()
    return torch.cat(
        [
            F.cross_entropy(logits_of(rows), targets[rows], reduction="none")
            for rows in wanted.flatten().nonzero().squeeze(1).split(chunk)
        ]
    )
