"""How generation asks a model for the next token's logits; each way of answering is one class."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sparse_tx.generation.cached import CachedDecoder
from sparse_tx.generation.context import first_kept
from sparse_tx.generation.native import NativeDecoder, why_not_native
from sparse_tx.model import GPT


class Decoder(Protocol):
    """Gives the logits after N growing texts.

    Tokens are those of the texts alone; the start symbol before them is the decoder's own affair,
    and so is what it drops of a text that outgrows the context (``context``).
    """

    def prefill(self, texts: Sequence[Tensor]) -> Tensor:
        """Begin with N texts, each ``(P,)`` int64 of its own length, which may be 0.

        Returns:
            ``(N, V)`` logits of the token after each.
        """

    def decode_one_token(self, tokens: Tensor) -> Tensor:
        """Append one token to each text, ``(N,)`` int64.

        Returns:
            ``(N, V)`` logits of the token after each.
        """

    def keep(self, texts: Sequence[int]) -> None:
        """Forget all texts but those of these numbers, which are counted anew in their order."""


def make_decoder(model: nn.Module, room: int | None = None) -> Decoder:
    """The fastest decoder that can run for a model where it is.

    Args:
        model: in eval mode.
        room: tokens that no text will exceed, if that is known: memory is taken for so many.
    """
    if not isinstance(model, GPT):
        return RecomputeDecoder(model)
    if why_not_native(model) is None:
        return NativeDecoder(model, room)
    return CachedDecoder(model, room)


class RecomputeDecoder:
    """Runs the model over the whole context again for every token: slow, with nothing to go wrong.

    Args:
        model: in eval mode; of it, ``config.seq_len``, ``start_token``, ``hidden`` and
            ``head_weight`` are used.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.device = next(model.parameters()).device

    def prefill(self, texts):
        self._texts = [text.to(self.device) for text in texts]  # what the context holds of them
        self._dropped = [0] * len(texts)
        return self._logits()

    def decode_one_token(self, tokens):
        tokens = tokens.to(self.device).unsqueeze(1)
        self._texts = [torch.cat(pair) for pair in zip(self._texts, tokens, strict=True)]
        return self._logits()

    def keep(self, texts):
        self._texts = [self._texts[n] for n in texts]
        self._dropped = [self._dropped[n] for n in texts]

    def _logits(self) -> Tensor:
        by_length: dict[int, list[int]] = {}
        for n, text in enumerate(self._texts):
            first = first_kept(self._dropped[n] + len(text), self.model.config.seq_len)
            self._texts[n] = text[first - self._dropped[n] :]
            self._dropped[n] = first
            by_length.setdefault(len(self._texts[n]), []).append(n)
        found: list[Tensor | None] = [None] * len(self._texts)
        for numbers in by_length.values():
            together = torch.stack([self._texts[n] for n in numbers])
            start = together.new_full((len(numbers), 1), self.model.start_token)
            with torch.inference_mode():
                # The head sees one position only: logits of all would be (N, T, V).
                hidden = self.model.hidden(torch.cat([start, together], dim=1))
                logits = hidden[:, -1] @ self.model.head_weight.T
            for n, row in zip(numbers, logits, strict=True):
                found[n] = row
        return torch.stack(found)
