"""How generation asks a model for the next token's logits; each way of answering is one class.

Past the context. A model has positions for ``seq_len`` inputs: the start symbol, then the text.
When there are more, the oldest half of the context is dropped, and what is left goes on as a text
that begins there, with the start symbol before it, as a training window does. Every position then
means what it meant in training, and the work per token stays bounded. What is dropped depends on
the length of the text alone (``first_kept``): a long prompt is continued as if its end had been
generated.
"""

from collections.abc import Sequence
from math import ceil
from typing import Protocol

import torch
from torch import Tensor, nn


def first_kept(length: int, seq_len: int) -> int:
    """Index of the first of ``length`` tokens of a text that the context still holds.

    The context loses ``seq_len // 2`` tokens (at least one) whenever it would exceed ``seq_len``
    with the start symbol before it.
    """
    dropped_at_once = max(1, seq_len // 2)
    return max(0, ceil((1 + length - seq_len) / dropped_at_once) * dropped_at_once)


class Decoder(Protocol):
    """Gives the logits after N growing texts, whose lengths may differ.

    Tokens are those of the text alone; the start symbol before it is the decoder's own affair.
    """

    def prefill(self, tokens: Sequence[Tensor]) -> Tensor:
        """Begin with N texts, each ``(P,)`` int64, where P may be 0.

        Returns:
            ``(N, V)`` logits of the token after them.
        """

    def decode_one_token(self, tokens: Tensor) -> Tensor:
        """Append one token to each text, ``(N,)`` int64.

        Returns:
            ``(N, V)`` logits of the token after it.
        """

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these of the texts, in this order."""


def make_decoder(model: nn.Module, texts: int) -> Decoder:
    """The fastest decoder that can run for so many texts at once."""
    return RecomputeDecoder(model)


class RecomputeDecoder:
    """Runs the model over the whole context again for every token: slow, with nothing to go wrong.

    Args:
        model: a ``GPT`` in eval mode; of it, ``config.seq_len``, ``start_token``, ``hidden`` and
            ``head_weight`` are used.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.device = next(model.parameters()).device

    def prefill(self, tokens):
        self._texts = [text.to(self.device) for text in tokens]  # what the context holds of each
        self._dropped = [0] * len(self._texts)
        return self._logits()

    def decode_one_token(self, tokens):
        parts = zip(self._texts, tokens.to(self.device).unsqueeze(1), strict=True)
        self._texts = [torch.cat(part) for part in parts]
        return self._logits()

    def keep(self, rows):
        self._texts = [self._texts[row] for row in rows]
        self._dropped = [self._dropped[row] for row in rows]

    def _logits(self) -> Tensor:
        for row, text in enumerate(self._texts):
            first = first_kept(self._dropped[row] + len(text), self.model.config.seq_len)
            self._texts[row] = text[first - self._dropped[row] :]
            self._dropped[row] = first
        if len({len(text) for text in self._texts}) == 1:
            return self._after(torch.stack(self._texts))
        return torch.cat([self._after(text.unsqueeze(0)) for text in self._texts])

    def _after(self, tokens: Tensor) -> Tensor:
        start = tokens.new_full((len(tokens), 1), self.model.start_token)
        tokens = torch.cat([start, tokens], dim=1)  # (N, T)
        with torch.inference_mode():
            # The head sees one position only: logits of all would be (N, T, V).
            return self.model.hidden(tokens)[:, -1] @ self.model.head_weight.T
