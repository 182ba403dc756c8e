"""Texts that join and leave one cache while others go on: continuous batching."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_tx.cache import KVCache
from sparse_tx.config import ModelConfig
from sparse_tx.generation.cached import CachedDecoder, NextToken
from sparse_tx.generation.context import first_kept
from sparse_tx.generation.native import NativeDecoder, why_not_native
from sparse_tx.model import GPT
from sparse_tx.model.growing_text import GrowingText


def cache_bytes(config: ModelConfig, *, slots: int, room: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values that ``Slots`` sets aside; arguments as there.

    The system gives memory to a page of them when it is first written to.
    """
    cache = KVCache(
        config.stack,
        n_layer=config.n_layer,
        n_head=config.n_head,
        texts=slots,
        room=min(config.seq_len, 1 + room),
        D=config.qk_width // config.n_head,
        D_v=config.n_embd // config.n_head,
        dtype=dtype,
        device=torch.device("meta"),
    )
    return cache.nbytes


@dataclass
class _Text:
    """What the context holds of a text, start symbol included, and its length in all."""

    held: GrowingText
    length: int


class Slots:
    """Room for some texts, each of which comes, grows and goes at its own time.

    No text depends on the others, to the bit: a prompt is read by itself; the native kernel's
    logits are the same however many texts there are; and torch, whose products round by the size
    of a batch, is given one text at a time. What outgrows the context loses its older half
    (``generation.context``).

    Args:
        model: in eval mode.
        slots: how many texts there may be.
        room: tokens that no text exceeds.
    """

    def __init__(self, model: GPT, *, slots: int, room: int):
        self._model = model
        self.why_not_native = why_not_native(model)
        kind = NativeDecoder if self.why_not_native is None else CachedDecoder
        self._decoder = kind(model, room)
        self._decoder.begin(slots)
        self._free = list(reversed(range(slots)))
        self._texts: dict[int, _Text] = {}

    @property
    def free(self) -> int:
        """How many texts may still join."""
        return len(self._free)

    def join(self, tokens: Sequence[int], copies: int = 1) -> tuple[list[int], Tensor]:
        """Begin texts that are the same so far; the work is that of one.

        Args:
            tokens: of the text, without start symbol; there may be none.
            copies: how many, at most ``free``.

        Returns:
            The slots that they take, and the ``(V,)`` logits of the token after them.
        """
        slots = [self._free.pop() for _ in range(copies)]
        held, logits = self._read(slots[0], tokens, len(tokens))
        self._texts[slots[0]] = _Text(held, len(tokens))
        for slot in slots[1:]:
            self._decoder.copy(slots[0], slot)
            self._texts[slot] = _Text(held.copy(), len(tokens))
        return slots, logits

    def append(self, tokens: Mapping[int, int]) -> Tensor:
        """Append a token to each of some texts.

        Args:
            tokens: n of them, by the slot of their text.

        Returns:
            ``(n, V)`` logits of the token after each, in the order of ``tokens``.
        """
        found: dict[int, Tensor] = {}
        going_on: list[NextToken] = []
        for slot, token in tokens.items():
            text = self._texts[slot]
            text.length += 1
            position = len(text.held.tokens)
            if position > self._kept(text.length):
                whole = [*text.held.tokens[1:], token]
                text.held, found[slot] = self._read(slot, whole, text.length)
            else:
                rows = text.held.append(token)
                going_on.append(NextToken(slot, position, text.held.recent(), rows))
        if going_on:
            logits = self._steps(going_on)
            found |= {token.text: row for token, row in zip(going_on, logits, strict=True)}
        return torch.stack([found[slot] for slot in tokens])

    def leave(self, slot: int) -> None:
        """Forget a text; its slot is free."""
        del self._texts[slot]
        self._free.append(slot)

    def _steps(self, tokens: list[NextToken]) -> Tensor:
        if self.why_not_native is None:
            return self._decoder.append(tokens)
        return torch.cat([self._decoder.append([token]) for token in tokens])

    def _read(self, slot: int, end: Sequence[int], length: int) -> tuple[GrowingText, Tensor]:
        """Read what the context holds of a text of ``length`` tokens, whose last are ``end``."""
        first = len(end) - self._kept(length)
        return self._decoder.read(slot, [self._model.start_token, *end[first:]])

    def _kept(self, length: int) -> int:
        """How many tokens of a text of ``length`` the context holds."""
        return length - first_kept(length, self._model.config.seq_len)
