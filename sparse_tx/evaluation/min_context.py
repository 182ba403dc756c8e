"""Bits per byte of a text under several minimum contexts at once, and by place in the window."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import numpy as np
import torch

from sparse_tx.evaluation.bits_per_byte import NotFinite, protocol_in_words
from sparse_tx.evaluation.token_losses import LanguageModel
from sparse_tx.evaluation.windows import MinContext, WindowPlan


@dataclass(frozen=True, kw_only=True)
class ProtocolScore:
    """The loss of a whole text under one protocol.

    Attributes:
        windows: the protocol.
        nats: the sum over all tokens.
        bytes: bytes of text that they stand for.
        start_in_words: what stands before a window.
    """

    windows: MinContext
    nats: float
    bytes: int
    start_in_words: str

    @property
    def tokens(self) -> int:
        """Tokens scored, each once."""
        return self.windows.n_tokens

    @property
    def bpb(self) -> float:
        """Bits per byte of text, whatever the tokenizer."""
        return self.nats / log(2) / self.bytes

    @property
    def protocol(self) -> str:
        """What the figure means, in words."""
        words = protocol_in_words(self.bytes, self.windows.seq_len, self.windows.min_context)
        return f"{words}; {self.start_in_words}"


@dataclass(frozen=True, kw_only=True)
class Places:
    """The loss of the tokens at some neighbouring places of their windows.

    Attributes:
        first, last: the least and the most tokens of the text before them in the window.
        nats: the sum over these tokens.
        tokens: how many they are.
        bytes: bytes of text that they stand for.
    """

    first: int
    last: int
    nats: float
    tokens: int
    bytes: int

    @property
    def bpb(self) -> float | None:
        """Bits per byte; None where the tokens stand for no bytes."""
        return self.nats / log(2) / self.bytes if self.bytes else None


@dataclass(frozen=True)
class Evaluation:
    """What scoring a text has found.

    Attributes:
        scores: one for each protocol, in the order asked for.
        curve: the loss by place, of all tokens in the windows of the first protocol, also those
            that another of its windows scores. The first two places are by themselves, then twice
            as many are taken together as before.
    """

    scores: tuple[ProtocolScore, ...]
    curve: tuple[Places, ...]


@torch.inference_mode()
def evaluate(
    model: LanguageModel,
    tokens: np.ndarray,
    token_bytes: np.ndarray,
    plan: WindowPlan,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a whole text, each token once for each protocol.

    The same call gives the same figures. Other protocols in the plan change a figure by no more
    than the model's rounding in a batch of other windows does; what is computed is the same.

    Args:
        model: see ``LanguageModel``.
        tokens: the text, 1-D token ids.
        token_bytes: how many bytes of text each of these tokens stands for, 1-D.
        plan: the protocols, for as many tokens as are scored: one less than there are if the model
            has no start token.
        on_progress: called with the tokens that went through the model, and those that will.

    Raises:
        NotFinite: a loss is not finite.
    """
    skipped = int(model.start_token is None)
    targets, token_bytes = tokens[skipped:], token_bytes[skipped:]
    assert len(targets) == len(token_bytes) == plan.n_tokens, "the plan is of another text"
    nats = [0.0] * len(plan.protocols)
    by_place = _ByPlace(plan.seq_len)
    done = 0
    for batch in plan.batches(model.tokens_at_once):
        within = batch.starts[:, None] + np.arange(batch.length)  # (B, T), numbers in the text
        wanted = np.arange(batch.length) >= batch.needed_from[:, None]
        losses = np.zeros(within.shape)
        losses[wanted] = _losses(model, tokens, targets, batch.starts, within, wanted)
        if not np.isfinite(losses).all():
            raise NotFinite(
                "the loss of this text is not finite; the weights of this model are broken"
            )
        for number, protocol in enumerate(plan.protocols):
            own = protocol.uses(batch.starts)
            first = protocol.first_scored(batch.starts[own])
            scored = np.arange(batch.length) >= first[:, None]
            nats[number] += losses[own][scored].sum()
        own = plan.protocols[0].uses(batch.starts)
        by_place.add(losses[own], token_bytes[within[own]])
        done += within.size
        if on_progress:
            on_progress(done, plan.tokens_run)
    n_bytes = int(token_bytes.sum(dtype=np.int64))
    scores = (
        ProtocolScore(
            windows=protocol,
            nats=float(total),
            bytes=n_bytes,
            start_in_words=model.start_in_words,
        )
        for protocol, total in zip(plan.protocols, nats, strict=True)
    )
    return Evaluation(tuple(scores), by_place.curve())


def _losses(
    model: LanguageModel,
    tokens: np.ndarray,
    targets: np.ndarray,
    starts: np.ndarray,
    within: np.ndarray,
    wanted: np.ndarray,
) -> np.ndarray:
    """The losses of the wanted targets of some windows, float64."""
    target = targets[within].astype(np.int64)  # (B, T)
    if model.start_token is None:
        before = tokens[starts].astype(np.int64)  # targets begin one later than tokens
    else:
        before = np.full(len(starts), model.start_token)
    inputs = np.concatenate([before[:, None], target[:, :-1]], axis=1)
    losses = model.token_losses(*map(torch.from_numpy, (inputs, target, wanted)))
    return losses.double().cpu().numpy()


class _ByPlace:
    """Sums of losses, tokens and bytes for each place of a window."""

    def __init__(self, seq_len: int):
        self.nats = np.zeros(seq_len)
        self.tokens = np.zeros(seq_len, np.int64)
        self.bytes = np.zeros(seq_len, np.int64)

    def add(self, losses: np.ndarray, token_bytes: np.ndarray) -> None:
        """Count the tokens of some windows, both ``(B, T)``."""
        length = losses.shape[1]
        self.nats[:length] += losses.sum(axis=0)
        self.tokens[:length] += len(losses)
        self.bytes[:length] += token_bytes.sum(axis=0, dtype=np.int64)

    def curve(self) -> tuple[Places, ...]:
        """The sums over places 0, 1, 2 to 3, 4 to 7 and so on, as far as there are tokens."""
        reached = int(np.count_nonzero(self.tokens))
        first, found = 0, []
        while first < reached:
            stop = min(max(1, 2 * first), reached)
            here = slice(first, stop)
            found.append(
                Places(
                    first=first,
                    last=stop - 1,
                    nats=float(self.nats[here].sum()),
                    tokens=int(self.tokens[here].sum()),
                    bytes=int(self.bytes[here].sum()),
                )
            )
            first = stop
        return tuple(found)
