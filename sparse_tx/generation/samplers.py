"""From logits to the next token: filters, then a draw, both in float64."""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_tx.config import SamplingConfig
from sparse_tx.errors import UserError

NOT_FINITE = (
    "the model's output is not finite (NaN or infinite logits): its weights are broken; take an"
    " earlier checkpoint"
)
# Relative: what exponentials and sums of a vocabulary may be off by. A token exactly at a bound
# must not be kept or lost for that.
_ROUNDING = 1e-12


def next_token_probabilities(
    logits: Tensor, settings: SamplingConfig, seen: Tensor | None = None
) -> Tensor:
    """The distribution that the next token is drawn from.

    Filters apply in the order repetition_penalty, temperature, top_k, top_p, min_p; each sees what
    the one before left, from top_k on with its probabilities scaled to sum to 1:

    * repetition_penalty divides the logits of the tokens that are ``seen``, and multiplies those
      below 0, so that above 1 it makes them less probable in either case (arXiv:1909.05858, section
      4.1, whose own logits are all divided). It looks at the logits as the model gives them, and
      comes first: temperature 0 then takes the most probable token that is left;
    * temperature divides the logits; 0 leaves only the most probable token;
    * top_k leaves the k most probable tokens;
    * top_p leaves the fewest most probable tokens whose probabilities sum to at least top_p (arXiv:
      1904.09751);
    * min_p leaves the tokens with at least min_p times the probability of the most probable one
      (arXiv:2407.01082).

    Of equally probable tokens the lower ids come first, so that exactly k tokens stay.

    Args:
        logits: ``(N, V)``, any floating type, finite.
        settings: the filters.
        seen: ``(N, V)`` bool, which tokens each text holds (``SeenTokens``); needed for a penalty.

    Returns:
        ``(N, V)`` float64 on the logits' device; every row sums to 1.

    Raises:
        UserError: a logit is infinite or NaN, or there is a penalty and no ``seen``.
    """
    logits = logits.double()
    if not logits.isfinite().all():
        raise UserError(NOT_FINITE)
    if settings.repetition_penalty != 1:
        if seen is None:
            raise UserError(
                f"repetition_penalty is {settings.repetition_penalty}, which needs to know the"
                " tokens of the text; give seen"
            )
        logits = _penalised(logits, seen.to(logits.device), settings.repetition_penalty)
    if settings.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1)
    # Relative to the most probable token's weight, 1. Subtracted before it is divided: a tiny
    # temperature then gives minus infinity at worst, and no NaN.
    weights = ((logits - logits.amax(-1, keepdim=True)) / settings.temperature).exp()
    if settings.top_k is not None or settings.top_p not in (None, 1):
        weights = _most_probable_only(weights, logits, settings.top_k, settings.top_p)
    if settings.min_p is not None:
        weights = weights.masked_fill(weights < settings.min_p * (1 - _ROUNDING), 0)
    return weights / weights.sum(-1, keepdim=True)


def _most_probable_only(
    weights: Tensor, logits: Tensor, top_k: int | None, top_p: float | None
) -> Tensor:
    """``(N, V)`` weights, 0 for tokens that are not among the first k, or of the first p."""
    # By logits: tokens that these tell apart may weigh the same.
    ids = logits.sort(dim=-1, descending=True, stable=True).indices
    ranked = weights.gather(-1, ids)
    if top_k is not None:
        ranked[:, top_k:] = 0
    if top_p not in (None, 1):
        running = ranked.cumsum(-1)
        before = running.roll(1, -1)
        before[:, 0] = 0
        enough = top_p * (1 - _ROUNDING) * running[:, -1:]
        ranked = ranked.masked_fill(before >= enough, 0)
    return torch.zeros_like(ranked).scatter_(-1, ids, ranked)


def _penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    changed = torch.where(logits > 0, logits / penalty, logits * penalty)
    largest = torch.finfo(logits.dtype).max  # an infinite difference is fine below, two are NaN
    return torch.where(seen, changed.clamp(-largest, largest), logits)


def draw(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one token per row, by inverting the cumulative distribution at one uniform number.

    Args:
        probabilities: ``(N, V)`` float64; rows need not sum to 1 exactly.
        generators: one per row, on the CPU, so that a seed means the same on every device.

    Returns:
        ``(N,)`` int64 on the CPU. A token of probability 0 is never drawn.
    """
    numbers = [torch.rand(1, dtype=torch.float64, generator=g) for g in generators]
    running = probabilities.cpu().cumsum(-1)
    # The numbers are at most 1 - 2^-53, so that also the rounded product is below the total.
    target = torch.stack(numbers) * running[:, -1:]
    return torch.searchsorted(running, target, right=True).squeeze(-1)


class SeenTokens:
    """Which tokens stand in each of N texts, or in its last few tokens, as the texts grow.

    What a token costs does not depend on the length of its text or of the window.

    Args:
        texts: N texts so far, each ``(P,)`` int64 on the CPU.
        windows: of each text, how many tokens at its end count; None for all of them.
        vocab_size: V.
    """

    def __init__(self, texts: Sequence[Tensor], windows: Sequence[int | None], vocab_size: int):
        self._windows = list(windows)
        ends = [
            text if window is None else text[max(0, len(text) - window) :]
            for text, window in zip(texts, windows, strict=True)
        ]
        self._counts = torch.stack([end.bincount(minlength=vocab_size) for end in ends])  # (N, V)
        # Needed only where tokens leave the window again.
        self._recent = [
            None if window is None else deque(end.tolist())
            for end, window in zip(ends, windows, strict=True)
        ]

    def mask(self) -> Tensor:
        """``(N, V)`` bool on the CPU, True where the row's text holds the column's token."""
        return self._counts > 0

    def add(self, tokens: Tensor) -> None:
        """Append one token to each text, ``(N,)`` int64 on the CPU."""
        column = tokens.unsqueeze(1)
        self._counts.scatter_add_(1, column, torch.ones_like(column))
        rows, left = [], []
        for row, (recent, window) in enumerate(zip(self._recent, self._windows, strict=True)):
            if window is not None:
                recent.append(int(tokens[row]))
                if len(recent) > window:
                    rows.append(row)
                    left.append(recent.popleft())
        if rows:
            self._counts[rows, left] -= 1  # each row once

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these of the texts, in this order."""
        self._counts = self._counts[list(rows)]
        self._windows = [self._windows[row] for row in rows]
        self._recent = [self._recent[row] for row in rows]


class Sampler:
    """Draws the next token of N texts, each by its own settings and its own random numbers.

    What a text is given does not depend on which others there are.

    Args:
        texts: N texts so far, each ``(P,)`` int64 on the CPU.
        settings: of each text.
        seeds: of each text, from 0 to 2^63 - 1.
        vocab_size: V.
    """

    def __init__(
        self,
        texts: Sequence[Tensor],
        settings: Sequence[SamplingConfig],
        seeds: Sequence[int],
        vocab_size: int,
    ):
        self._settings = list(settings)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._seen = None
        if any(each.repetition_penalty != 1 for each in settings):
            windows = [each.repetition_window for each in settings]
            self._seen = SeenTokens(texts, windows, vocab_size)
        self._group()

    def draw(self, logits: Tensor) -> Tensor:
        """Draw a token for each text by its ``(N, V)`` logits: ``(N,)`` int64 on the CPU.

        Raises:
            UserError: a logit is infinite or NaN.
        """
        tokens = draw(self._probabilities(logits), self._generators)
        if self._seen is not None:
            self._seen.add(tokens)
        return tokens

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these of the texts, in this order."""
        self._settings = [self._settings[row] for row in rows]
        self._generators = [self._generators[row] for row in rows]
        if self._seen is not None:
            self._seen.keep(rows)
        self._group()

    def _group(self) -> None:
        """Texts of equal settings are filtered together."""
        self._rows_of: dict[SamplingConfig, list[int]] = {}
        for row, settings in enumerate(self._settings):
            self._rows_of.setdefault(settings, []).append(row)

    def _probabilities(self, logits: Tensor) -> Tensor:
        seen = None if self._seen is None else self._seen.mask()
        if len(self._rows_of) == 1:
            return next_token_probabilities(logits, self._settings[0], seen)
        found = torch.empty(logits.shape, dtype=torch.float64, device=logits.device)
        for settings, rows in self._rows_of.items():
            of_these = None if seen is None else seen[rows]
            found[rows] = next_token_probabilities(logits[rows], settings, of_these)
        return found
