"""Bits per byte of a text under one stated protocol."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor

from sparse_tx.errors import UserError
from sparse_tx.model import GPT


class NotFinite(UserError):
    """A loss is infinite or no number: the weights are broken."""


@dataclass(frozen=True)
class Score:
    """The total loss of a text, and how it was taken.

    ``nats`` is summed over ``tokens`` tokens, which stand for ``bytes`` bytes of text. ``complete``
    is whether all that was asked for is scored. ``whole_batches`` are the tokens and nats of the
    full batches at the beginning, from which a scoring of more of the text goes on.
    """

    nats: float
    tokens: int
    bytes: int
    seq_len: int
    complete: bool = True
    whole_batches: tuple[int, float] = (0, 0.0)

    @property
    def bpb(self) -> float:
        """Bits per byte of text, whatever the tokenizer."""
        return self.nats / log(2) / self.bytes

    @property
    def protocol(self) -> str:
        """What the figure means, in words."""
        return protocol_in_words(self.bytes, self.seq_len)


def protocol_in_words(n_bytes: int, seq_len: int, min_context: int = 0) -> str:
    """How a text was scored, for a person.

    Args:
        n_bytes: bytes of text that were scored.
        seq_len: tokens of a window.
        min_context: tokens that a scored one has before it, but for those of the first window.
    """
    words = f"the first {n_bytes:,} bytes, each scored once, in windows of {seq_len:,} tokens that"
    if min_context == 0:
        return f"{words} do not overlap; context begins anew in each"
    return (
        f"{words} begin {seq_len - min_context:,} apart; the first window scores all of its tokens,"
        f" a later one those with at least {min_context:,} tokens of the text before them in it"
    )


def tokens_within(tokens: np.ndarray, token_bytes: np.ndarray, max_bytes: int | None) -> np.ndarray:
    """The tokens at the beginning of a text that lie wholly within so many bytes.

    Args:
        tokens: the text, 1-D token ids.
        token_bytes: how many bytes of text each id stands for, ``(V,)``.
        max_bytes: None for all tokens.
    """
    if max_bytes is None:
        return tokens
    # No token stands for less than a byte, so that only max_bytes of them need be looked at.
    lengths = token_bytes[tokens[:max_bytes]]
    return tokens[: np.searchsorted(lengths.cumsum(), max_bytes, side="right")]


@torch.inference_mode()
def score(
    model: GPT,
    tokens: np.ndarray,
    token_bytes: np.ndarray,
    *,
    max_bytes: int | None = None,
    tokens_at_once: int = 16_384,
    begun: Score | None = None,
    is_time_up: Callable[[], bool] | None = None,
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
        begun: the score of a beginning of the same text by the same weights, model and
            ``tokens_at_once``, whose batches are not computed again; the result is the same to the
            bit.
        is_time_up: asked after each batch; once it is true, scoring ends there.
        on_progress: called with the tokens done and in all.

    Raises:
        UserError: there is nothing to score.
        NotFinite: a loss is not finite.
    """
    tokens = tokens_within(tokens, token_bytes, max_bytes)
    if len(tokens) == 0:
        raise UserError("there is no whole token to score; take a longer text")
    seq_len, device = model.config.seq_len, model.head_weight.device
    was_training = model.training
    model.eval()
    batch_size = max(1, tokens_at_once // seq_len)
    whole_batches = (0, 0.0)
    if begun is not None and begun.whole_batches[0] <= len(tokens):
        whole_batches = begun.whole_batches
    done, nats = whole_batches
    windows = _windows(tokens, seq_len, batch_size, model.start_token, begin=done)
    try:
        for end, inputs, targets in windows:
            done = end
            nats += model.loss(inputs.to(device), targets.to(device)).item()
            if done % (batch_size * seq_len) == 0:
                whole_batches = (done, nats)
            if on_progress:
                on_progress(done, len(tokens))
            if is_time_up and is_time_up():
                break
    finally:
        model.train(was_training)
    if not np.isfinite(nats):
        raise NotFinite("the loss of this text is not finite; the weights of this model are broken")
    return Score(
        nats=nats,
        tokens=done,
        bytes=int(token_bytes[tokens[:done]].sum()),
        seq_len=seq_len,
        complete=done == len(tokens),
        whole_batches=whole_batches,
    )


def _windows(
    tokens: np.ndarray, seq_len: int, batch_size: int, start_token: int, begin: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the tokens done after a batch, and its inputs and targets ``(B, T)``."""
    step, at = batch_size * seq_len, begin
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
