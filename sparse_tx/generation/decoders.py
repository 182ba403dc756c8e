"""How generation asks a model for the next token's logits; each way of answering is one class.

Past the context. A model has positions for ``seq_len`` inputs: the start symbol, then the text.
When there are more, the oldest half of the context is dropped, and what is left goes on as a text
that begins there, with the start symbol before it, as a training window does. Every position then
means what it meant in training, and the work per token stays bounded. What is dropped depends on
the length of the text alone (``first_kept``): a long prompt is continued as if its end had been
generated.
"""

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
    """Gives the logits after a growing text, for N texts of one length at once.

    Tokens are those of the text alone; the start symbol before it is the decoder's own affair.
    """

    def prefill(self, tokens: Tensor) -> Tensor:
        """Begin with the texts ``tokens``, ``(N, P)`` int64, where P may be 0.

        Returns:
            ``(N, V)`` logits of the token after them.
        """

    def decode_one_token(self, tokens: Tensor) -> Tensor:
        """Append one token to each text, ``(N,)`` int64.

        Returns:
            ``(N, V)`` logits of the token after it.
        """


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
        self._text = tokens.to(self.device)  # (N, P), what the context holds of it
        self._dropped = 0
        return self._logits()

    def decode_one_token(self, tokens):
        self._text = torch.cat([self._text, tokens.to(self.device).unsqueeze(1)], dim=1)
        return self._logits()

    def _logits(self) -> Tensor:
        first = first_kept(self._dropped + self._text.shape[1], self.model.config.seq_len)
        self._text = self._text[:, first - self._dropped :]
        self._dropped = first
        start = self._text.new_full((len(self._text), 1), self.model.start_token)
        with torch.inference_mode():
            # The head sees one position only: logits of all would be (N, T, V).
            hidden = self.model.hidden(torch.cat([start, self._text], dim=1))
            return hidden[:, -1] @ self.model.head_weight.T
