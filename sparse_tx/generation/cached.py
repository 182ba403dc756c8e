"""Decoders that keep keys and values, so that a token costs what its patterns read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_tx.generation.context import first_kept
from sparse_tx.model import GPT
from sparse_tx.model.growing_text import GrowingText
from sparse_tx.model.incremental import decode_one_token, make_cache, prefill


@dataclass
class _Text:
    """A text: what the context holds of it, start symbol included, and its length in all."""

    held: GrowingText
    length: int


@dataclass(frozen=True)
class NextToken:
    """A token that is to be appended to a text.

    Attributes:
        text: number of the text.
        position: of the token in the context.
        recent: the token and those before it (``GPT.embed_one_token``).
        rows: of the look-ups.
    """

    text: int
    position: int
    recent: list[int]
    rows: list[int]


class IncrementalDecoder:
    """What decoders with a cache have in common: the texts, and what is dropped of them.

    Texts have numbers. They grow together (``prefill``, ``decode_one_token``, ``keep``), or each
    begins, grows and ends at its own time (``open``, ``start``, ``grow``, ``end``). When one
    outgrows the context, what is kept of it is read anew, once in ``seq_len // 2`` tokens. A
    subclass has the cache: what it has to define comes first.

    Args:
        model: in eval mode.
        room: tokens that no text will exceed, if that is known: memory is taken for so many.
    """

    def __init__(self, model: GPT, room: int | None = None):
        self.model = model
        seq_len = model.config.seq_len
        self.room = seq_len if room is None else min(seq_len, 1 + room)
        self._texts: dict[int, _Text] = {}

    def begin(self, texts: int) -> None:
        """Make an empty cache."""
        raise NotImplementedError

    def read(self, text: int, tokens: list[int]) -> tuple[GrowingText, Tensor]:
        """Begin a text with ``tokens``, start symbol included; also the logits after it, (V,)."""
        raise NotImplementedError

    def append(self, tokens: list[NextToken]) -> Tensor:
        """Append tokens to as many texts: their logits ``(n, V)``."""
        raise NotImplementedError

    def copy(self, source: int, target: int) -> None:
        """Let a text be what another is."""
        raise NotImplementedError

    def forget_all_but(self, texts: Sequence[int]) -> None:
        """Keep the texts of these numbers in the cache."""
        raise NotImplementedError

    def open(self, texts: int) -> None:
        """Make room for so many texts, none of which has begun."""
        self.begin(texts)
        self._texts = {}

    def start(self, texts: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Begin texts that are the same so far; the work is that of one.

        Args:
            texts: their numbers.
            tokens: of each, without start symbol; there may be none.

        Returns:
            ``(V,)`` logits of the token after them.
        """
        first, *others = texts
        held, logits = self.read(first, self._held(list(tokens), len(tokens)))
        self._texts[first] = _Text(held, len(tokens))
        for text in others:
            self.copy(first, text)
            self._texts[text] = _Text(held.copy(), len(tokens))
        return logits

    def assume(self, text: int, tokens: Sequence[int]) -> None:
        """Take it that the cache holds a text, without start symbol, which nobody has read."""
        held = GrowingText(self.model.config, [self.model.start_token, *tokens])
        self._texts[text] = _Text(held, len(tokens))

    def grow(self, tokens: Mapping[int, int]) -> Tensor:
        """Append a token to each of some texts.

        Args:
            tokens: n of them, by the number of their text.

        Returns:
            ``(n, V)`` logits of the token after each, in the order of ``tokens``.
        """
        found: dict[int, Tensor] = {}
        going_on: list[NextToken] = []
        for number, token in tokens.items():
            text = self._texts[number]
            text.length += 1
            position = len(text.held.tokens)
            if position > text.length - first_kept(text.length, self.model.config.seq_len):
                whole = self._held([*text.held.tokens[1:], token], text.length)
                text.held, found[number] = self.read(number, whole)
                continue
            if position >= self.room:
                raise IndexError(f"{position} tokens of a text, in a cache for {self.room - 1}")
            rows = text.held.append(token)
            going_on.append(NextToken(number, position, text.held.recent(), rows))
        if not found:
            return self.append(going_on)
        if going_on:
            logits = self.append(going_on)
            found |= {token.text: row for token, row in zip(going_on, logits, strict=True)}
        return torch.stack([found[number] for number in tokens])

    def end(self, text: int) -> None:
        """Forget a text, whose number another may take."""
        del self._texts[text]

    def prefill(self, texts: Sequence[Tensor]) -> Tensor:
        """Begin with N texts, each ``(P,)`` int64: ``(N, V)`` logits of the token after each."""
        self.open(len(texts))
        alike: dict[tuple[int, ...], list[int]] = {}  # samples of one prompt
        for number, text in enumerate(texts):
            alike.setdefault(tuple(text.tolist()), []).append(number)
        found: dict[int, Tensor] = {}
        for tokens, numbers in alike.items():
            found |= dict.fromkeys(numbers, self.start(numbers, tokens))
        return torch.stack([found[number] for number in range(len(texts))])

    def decode_one_token(self, tokens: Tensor) -> Tensor:
        """Append a token to each text, ``(N,)`` int64: ``(N, V)`` logits of the token after it."""
        return self.grow(dict(zip(range(len(self._texts)), tokens.tolist(), strict=True)))

    def decode_tokens(self, tokens: Sequence[int]) -> Iterator[Tensor]:
        """Append tokens to the one text that there is; yields ``(V,)`` logits after each."""
        for token in tokens:
            yield self.decode_one_token(torch.tensor([token]))[0]

    def keep(self, texts: Sequence[int]) -> None:
        """Forget all texts but those of these numbers, which are counted anew in their order."""
        self.forget_all_but(texts)
        self._texts = {n: self._texts[old] for n, old in enumerate(texts)}

    def _held(self, end: list[int], length: int) -> list[int]:
        """What the context holds of a text of ``length`` tokens, of which ``end`` are the last."""
        kept = length - first_kept(length, self.model.config.seq_len)
        if kept >= self.room:
            raise IndexError(f"{kept} tokens of a text, in a cache for {self.room - 1}")
        return [self.model.start_token, *end[len(end) - kept :]]


class CachedDecoder(IncrementalDecoder):
    """Computes by torch: on any device, in any precision, for any pattern.

    Under autocast, it has to be so in every call.
    """

    def begin(self, texts):
        self.cache = make_cache(self.model, texts=texts, room=self.room)

    def read(self, text, tokens):
        device = self.model.token_embedding.weight.device
        logits = prefill(self.model, torch.tensor(tokens, device=device), self.cache, text)
        return GrowingText(self.model.config, tokens), logits

    def append(self, tokens):
        texts, positions = [t.text for t in tokens], {t.position for t in tokens}
        if len(positions) == 1 and texts == list(range(texts[0], texts[-1] + 1)):
            return self._append_to_neighbours(tokens)
        return torch.cat([self._append_to_neighbours([token]) for token in tokens])

    def copy(self, source, target):
        self.cache.copy_text(source, target)

    def forget_all_but(self, texts):
        self.cache.keep(list(texts))

    def _append_to_neighbours(self, tokens: list[NextToken]) -> Tensor:
        device = self.model.token_embedding.weight.device
        return decode_one_token(
            self.model,
            torch.tensor([token.recent for token in tokens], device=device),
            torch.tensor([token.rows for token in tokens], dtype=torch.long, device=device),
            self.cache,
            slice(tokens[0].text, tokens[-1].text + 1),
            tokens[0].position,
        )
