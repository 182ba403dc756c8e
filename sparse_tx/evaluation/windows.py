"""Which windows of a text a model is run on, and which of their tokens count.

The protocol of minimum context (arXiv:1904.10509, table 3): the text is read in windows that
overlap, and of each window after the first only those tokens are scored that have at least
``min_context`` tokens of the text before them in it. Every token is scored once. Of the first
window all are, with what context there is.

What a window is. It holds ``seq_len`` inputs: the start symbol, then all of its tokens but the
last, so that each of its ``seq_len`` tokens is predicted; this is what training windows are. The
token at place p of a window (from 0) has the start symbol and p tokens of the text before it. The
start symbol is not counted: a minimum context of m scores the places from m on.

The least work. A window can score no more than ``seq_len - min_context`` tokens, and so windows
begin at the multiples of that step, as few as cover the text. This holds whatever other protocols
are asked for at the same time: a figure does not depend on them. Protocols share those windows that
begin at the same token, each of which is computed once, and for no more places than are looked at.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from sparse_tx.accounting import linear, useful_flops
from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MinContext:
    """The windows of one protocol over one text.

    Attributes:
        min_context: tokens of the text that a scored token has before it in its window, at least,
            but for the first window; 0 for windows that do not overlap.
        seq_len: tokens of a window.
        n_tokens: tokens of the text, all of which are scored.
    """

    min_context: int
    seq_len: int
    n_tokens: int

    def __post_init__(self):
        if not 0 <= self.min_context < self.seq_len:
            raise UserError(
                f"min_context is {self.min_context:,}, and a window has {self.seq_len:,} tokens;"
                f" it must be from 0 to {self.seq_len - 1:,}, for some to be left to score"
            )
        if self.n_tokens < 1:
            raise UserError("there is no whole token to score; take a longer text")

    @property
    def step(self) -> int:
        """Tokens from the beginning of a window to that of the next."""
        return self.seq_len - self.min_context

    @property
    def n_windows(self) -> int:
        """How many windows there are; the last ends with the text, and may be shorter."""
        return 1 + -(-max(0, self.n_tokens - self.seq_len) // self.step)

    @property
    def starts(self) -> np.ndarray:
        """The first token of each window, ascending."""
        return np.arange(self.n_windows, dtype=np.int64) * self.step

    def uses(self, starts: np.ndarray) -> np.ndarray:
        """Which of the windows that begin at ``starts`` are among its own."""
        return (starts % self.step == 0) & (starts < self.n_windows * self.step)

    def first_scored(self, starts: np.ndarray) -> np.ndarray:
        """The first place of each of these windows whose token is scored."""
        return np.where(starts == 0, 0, self.min_context)


@dataclass(frozen=True)
class Batch:
    """Windows of one length that are run at once.

    Attributes:
        starts: the first token of each, ``(B,)``.
        needed_from: the first place of each whose loss is looked at, ``(B,)``.
        length: tokens of each.
    """

    starts: np.ndarray
    needed_from: np.ndarray
    length: int


@dataclass(frozen=True)
class WindowPlan:
    """All windows that some protocols over one text need, each of them once.

    Of the first protocol's windows all places are looked at, not only those that it scores: the
    loss by place is taken from them.
    """

    protocols: tuple[MinContext, ...]

    @property
    def seq_len(self) -> int:
        """Tokens of a window."""
        return self.protocols[0].seq_len

    @property
    def n_tokens(self) -> int:
        """Tokens of the text that are scored."""
        return self.protocols[0].n_tokens

    @cached_property
    def starts(self) -> np.ndarray:
        """The first token of each window, ascending."""
        return np.unique(np.concatenate([protocol.starts for protocol in self.protocols]))

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each window: ``seq_len``, or what is left of the text."""
        return np.minimum(self.seq_len, self.n_tokens - self.starts)

    @cached_property
    def needed_from(self) -> np.ndarray:
        """The first place of each window whose loss is looked at."""
        needed = np.full(len(self.starts), self.seq_len)
        for protocol in self.protocols:
            first = protocol.first_scored(self.starts)
            needed = np.where(protocol.uses(self.starts), np.minimum(needed, first), needed)
        return np.where(self.protocols[0].uses(self.starts), 0, needed)

    @property
    def tokens_run(self) -> int:
        """Tokens that go through the model."""
        return int(self.lengths.sum())

    @property
    def losses_taken(self) -> int:
        """Tokens that go through the model's head too."""
        return int((self.lengths - self.needed_from).sum())

    def useful_flops(self, config: ModelConfig) -> int:
        """Useful FLOPs of all forward passes, as ``accounting.flops`` counts them."""
        total = linear(self.losses_taken, config.n_embd, config.vocab_size).forward
        for length, count in zip(*np.unique(self.lengths, return_counts=True), strict=True):
            flops = useful_flops(config, int(length))
            total += int(count) * (flops.all_parts.forward - flops.head.forward)
        return total

    def batches(self, tokens_at_once: int) -> Iterator[Batch]:
        """Yield all windows, in the order of the text.

        Whole windows come as many at once as ``tokens_at_once`` has room for, at least one;
        shorter ones, which end the text, each by itself.
        """
        whole = int((self.lengths == self.seq_len).sum())
        at_once, at = max(1, tokens_at_once // self.seq_len), 0
        while at < len(self.starts):
            stop = min(at + at_once, whole) if at < whole else at + 1
            here = slice(at, stop)
            yield Batch(self.starts[here], self.needed_from[here], int(self.lengths[at]))
            at = stop


def plan_windows(n_tokens: int, seq_len: int, min_contexts: Sequence[int]) -> WindowPlan:
    """Plan how a text is scored under several minimum contexts at once.

    Args:
        n_tokens: tokens of the text that are scored.
        seq_len: tokens of a window.
        min_contexts: one for each protocol; one that is named twice counts once.

    Raises:
        UserError: none is named, one is not from 0 to ``seq_len - 1``, or there is no token.
    """
    if not min_contexts:
        raise UserError("min_context is empty; name at least one, such as 0")
    return WindowPlan(
        tuple(
            MinContext(min_context=m, seq_len=seq_len, n_tokens=n_tokens)
            for m in dict.fromkeys(min_contexts)
        )
    )


def check_windows_of_images(
    shape: tuple[int, ...], seq_len: int, min_contexts: Sequence[int]
) -> None:
    """Refuse windows that are not whole images, one in each, as a model of images is trained on.

    Args:
        shape: H, W, C of an image.
        seq_len: tokens of a window.
        min_contexts: one for each protocol.

    Raises:
        UserError: a window is shorter than an image, or windows overlap.
    """
    size = prod(shape)
    if seq_len != size:
        raise UserError(
            f"a window has {seq_len:,} tokens, and the model is of images of {size:,} bytes, one in"
            " a window; leave --seq_len out"
        )
    if any(min_contexts):
        raise UserError(
            f"min_context is {max(min_contexts):,}, for which windows overlap, and the model is of"
            " images, one in a window; leave --min_context out"
        )
