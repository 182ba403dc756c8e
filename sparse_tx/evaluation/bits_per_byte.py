"""Bits per byte of a text under one stated protocol."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor

from sparse_tx.errors import UserError
from sparse_tx.model import GPT


@dataclass(frozen=True)
class Score:
    """The total loss of a text, and how it was taken.

    ``nats`` is summed over ``tokens`` tokens, which stand for ``bytes`` bytes of text.
    """

    nats: float
    tokens: int
    bytes: int
    seq_len: int

    @property
    def bpb(self) -> float:
        """Bits per byte of text, whatever the tokenizer."""
        return self.nats / log(2) / self.bytes

    @property
    def protocol(self) -> str:
        """What the figure means, in words."""
        return (
            f"the first {self.bytes:,} bytes, each scored once, in windows of {self.seq_len:,}"
            " tokens that do not overlap; context begins anew in each"
        )


@torch.inference_mode()
def score(
    model: GPT,
    tokens: np.ndarray,
    token_bytes: np.ndarray,
    *,
    max_bytes: int | None = None,
    tokens_at_once: int = 16_384,
    on_progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Score a text from its beginning, in order; deterministic, and no token is left out.

    Windows of ``model.config.seq_len`` follow one another, the last as short as it comes out. Each
    begins with the start symbol, as training windows do: nothing before it is seen.

    Args:
        model: switched to evaluation while it works, and back.
        tokens: the text, 1-D token ids.
        token_bytes: how many bytes of text each id stands for, ``(V,)``.
        max_bytes: score only tokens that lie wholly within so many bytes; all if not given.
        tokens_at_once: tokens per forward pass, at least one window.
        on_progress: called with the tokens done and in all.

    Raises:
        UserError: there is nothing to score, or a loss is not finite.
    """
    if max_bytes is not None:
        # No token stands for less than a byte, so that only max_bytes of them need be looked at.
        lengths = token_bytes[tokens[:max_bytes]]
        tokens = tokens[: np.searchsorted(lengths.cumsum(), max_bytes, side="right")]
    if len(tokens) == 0:
        raise UserError("there is no whole token to score; take a longer text")
    seq_len, device = model.config.seq_len, model.head_weight.device
    was_training = model.training
    model.eval()
    nats = 0.0
    try:
        batch_size = max(1, tokens_at_once // seq_len)
        for done, inputs, targets in _windows(tokens, seq_len, batch_size, model.start_token):
            nats += model.loss(inputs.to(device), targets.to(device)).item()
            if on_progress:
                on_progress(done, len(tokens))
    finally:
        model.train(was_training)
    if not np.isfinite(nats):
        raise UserError("the loss of this text is not finite; the weights of this model are broken")
    n_bytes = int(token_bytes[tokens].sum())
    return Score(nats=nats, tokens=len(tokens), bytes=n_bytes, seq_len=seq_len)


def _windows(
    tokens: np.ndarray, seq_len: int, batch_size: int, start_token: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the tokens done after a batch, and its inputs and targets ``(B, T)``."""
    step, at = batch_size * seq_len, 0
    while at < len(tokens):
        stop = min(at + step, len(tokens))
        whole = (stop - at) // seq_len
        # Whole windows in one batch; what is left at the very end is a short window of its own.
        stop = at + whole * seq_len if whole else stop
        targets = torch.from_numpy(tokens[at:stop].astype(np.int64))
        targets = targets.view(max(1, whole), -1)
        starts = torch.full((len(targets), 1), start_token)
        yield stop, torch.cat([starts, targets[:, :-1]], dim=1), targets
        at = stop
