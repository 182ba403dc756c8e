"""Texts that join and leave one cache while others go on: continuous batching."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparse_tx.generation import CachedDecoder, NativeDecoder
from sparse_tx.generation.native import why_not_native
from sparse_tx.model import GPT


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
        self.why_not_native = why_not_native(model)
        kind = NativeDecoder if self.why_not_native is None else CachedDecoder
        self._decoder = kind(model, room)
        self._decoder.open(slots)
        self._decoder.cache.occupy()  # too little memory is found out now, and not in the middle
        self._free = list(reversed(range(slots)))

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
        return slots, self._decoder.start(slots, tokens)

    def append(self, tokens: Mapping[int, int]) -> Tensor:
        """Append a token to each of some texts.

        Args:
            tokens: n of them, by the slot of their text.

        Returns:
            ``(n, V)`` logits of the token after each, in the order of ``tokens``.
        """
        if self.why_not_native is None:
            return self._decoder.grow(tokens)
        return torch.cat([self._decoder.grow({slot: token}) for slot, token in tokens.items()])

    def leave(self, slot: int) -> None:
        """Forget a text; its slot is free."""
        self._decoder.end(slot)
        self._free.append(slot)
