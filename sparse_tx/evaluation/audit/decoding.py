"""Decoding paths: the logits that come token by token, against those of the whole text at once.

Two texts are decoded side by side, from prompts of several lengths. After every prefix

* the logits are those of the model on the whole text, up to rounding. How much that is gets
  measured, in the model's own passes in float32 and float64; a decoder that takes float64 is tried
  in it too, where rounding hides a billion times less;
* with a token of the first text flipped, they are those of the flipped text; and where no layers
  lead from that token to a position, the logits there keep every bit, which is exact because both
  times the decoder computes in the same shapes;
* so do the logits of the second text, which must not see the first.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparse_tx.evaluation.audit.findings import DecoderProof, Fault
from sparse_tx.evaluation.audit.flips import embedded_range
from sparse_tx.evaluation.audit.heads import name_of
from sparse_tx.evaluation.audit.lengths import spread
from sparse_tx.model import GPT

# Tokens that are decoded after a prompt, in texts that are not decoded as a whole.
_STEPS = 3
# How many measured roundings logits may differ by: sums of a few terms more, in another order.
_ROUNDINGS = 16
# Tokens that are asked whether they are to blame: all, in a text that is no longer.
_SUSPECTS = 300
# An influence this much smaller than another is none.
_NO_INFLUENCE = 1 / 8


class Decoder(Protocol):
    """Gives the logits after N growing texts; the start symbol is the decoder's own affair."""

    def prefill(self, texts: Tensor) -> Tensor:
        """Begin with N texts, ``(N, P)`` int64: ``(N, V)`` logits of the token after each."""

    def decode_one_token(self, tokens: Tensor) -> Tensor:
        """Append one token to each text, ``(N,)`` int64: ``(N, V)`` logits of the next."""


def _takes_every_model(model: GPT) -> None:
    """Why such a decoder cannot run for a model: there is no reason."""


@dataclass(frozen=True)
class DecodingPath:
    """A way of decoding.

    Attributes:
        name: what a person calls it.
        make: makes a decoder for a model in eval mode, and texts of up to so many tokens.
        why_not: says in a sentence why it cannot run for a model, or None if it can.
    """

    name: str
    make: Callable[[GPT, int], Decoder]
    why_not: Callable[[GPT], str | None] = _takes_every_model


@dataclass(frozen=True, kw_only=True)
class Walks:
    """How texts are decoded: prompts, and up to which length.

    Attributes:
        prompts: lengths of prompts after which a few tokens are decoded.
        whole: whether the text is decoded once from its beginning to its end, too.
        flips: whether, after prompts, it is done again with tokens flipped.
    """

    prompts: tuple[int, ...]
    whole: bool
    flips: bool

    def over(self, length: int) -> Iterator[tuple[int, int]]:
        """Of a text of so many tokens: the length of the prompt, and of prompt and what follows."""
        if self.whole:
            yield 0, length
        for prompt in self.prompts:
            if prompt <= length:
                yield prompt, min(length, prompt + _STEPS)


def measured_rounding(model: GPT, exact: GPT, tokens: Tensor) -> float:
    """By how much the logits of a text are off: in roundings of their type, of the largest one.

    Args:
        model: in float32.
        exact: the same in float64.
        tokens: ``(T,)``, start symbol included.
    """
    true = _logits(exact, tokens[None]).double()
    error = (_logits(model, tokens[None]).double() - true).abs().max()
    eps = torch.finfo(model.token_embedding.weight.dtype).eps
    return max(1.0, (error / (true.abs().max() * eps)).item())


@dataclass(frozen=True, kw_only=True)
class DecodingCase:
    """One way of decoding, for one model.

    Attributes:
        decoder: the way.
        model: in eval mode.
        engine: that it uses for whole texts, for the message.
        texts: ``(2, T - 1)`` tokens without the start symbol, on the CPU.
        reached: what ``reachable_pairs`` gives for T positions.
        walks: how they are decoded.
        roundings: what ``measured_rounding`` gives.
    """

    decoder: DecodingPath
    model: GPT
    engine: str
    texts: Tensor
    reached: Tensor
    walks: Walks
    roundings: float

    def run(self) -> DecoderProof | Fault:
        """Decode, and compare; the first fault if there is one."""
        whole = _whole_logits(self.model, self.texts)  # (2, T, V)
        tolerance = self._tolerance(whole)
        n_logits, largest, prompts = 0, 0.0, []
        for prompt, stop in self.walks.over(self.texts.shape[1]):
            found = self._decode(self.texts, prompt, stop)
            fault = self._compare(found, self.texts, whole, prompt, stop, tolerance)
            for flipped in self._flips(prompt, stop):
                fault = fault or self._with_a_flip(found, flipped, prompt, stop, tolerance)
            if fault is not None:
                return fault
            error = (found - whole[:, prompt : stop + 1]).abs().max().item()
            n_logits, largest = n_logits + found.shape[0] * found.shape[1], max(largest, error)
            prompts.append(prompt)
        return DecoderProof(
            decoder=self.decoder.name,
            engine=self.engine,
            dtype=name_of(whole.dtype),
            seq_len=self.texts.shape[1] + 1,
            prefixes=tuple(dict.fromkeys(prompts)),
            logits=n_logits,
            error=largest,
            rounding=tolerance,
        )

    def _tolerance(self, logits: Tensor) -> float:
        eps = torch.finfo(logits.dtype).eps
        return _ROUNDINGS * self.roundings * eps * logits.abs().max().item()

    def _flips(self, prompt: int, stop: int) -> Iterable[int]:
        """Tokens to flip in a short walk: the first, the prompt's last, and the last of all."""
        is_short = stop - prompt <= _STEPS
        if not (self.walks.flips and is_short) or self.model.config.vocab_size == 1:
            return ()
        return sorted({token for token in (0, prompt - 1, stop - 1) if 0 <= token < stop})

    def _decode(self, texts: Tensor, prompt: int, stop: int) -> Tensor:
        """The decoder's logits after the prompt and after each further token: ``(N, n, V)``."""
        decoder = self.decoder.make(self.model, texts.shape[1])
        # A decoder may give out the same memory at every step.
        found = [decoder.prefill(texts[:, :prompt]).clone()]
        for at in range(prompt, stop):
            found.append(decoder.decode_one_token(texts[:, at]).clone())
        return torch.stack(found, 1).to(self.model.token_embedding.weight.device)

    def _compare(
        self, found: Tensor, texts: Tensor, whole: Tensor, prompt: int, stop: int, tolerance: float
    ) -> Fault | None:
        """The first logits that are not those of the whole text."""
        error = (found - whole[:, prompt : stop + 1]).abs().amax(-1)  # (2, n)
        wrong = ~(error <= tolerance)  # NaN is not
        if not wrong.any():
            return None
        n, step = wrong.nonzero()[0].tolist()
        verdict = self._blame(texts[n], prompt, prompt + step, tolerance)
        last = wrong[n].nonzero()[-1].item()
        if verdict is None or (verdict[0] == "wrong" and last > step):
            # The start symbol cannot be flipped: a decoder that loses the oldest key is caught
            # later, when that key is a token's.
            later = self._blame(texts[n], prompt, prompt + last, tolerance)
            if later is not None and (verdict is None or later[0] != "wrong"):
                verdict, step = later, last
        kind, key, words = verdict or ("wrong", 0, "no single token is to blame")
        query = prompt + step
        return self._fault(
            kind,
            query,
            key,
            f"the logits at position {query}, decoded after a prompt of {prompt} tokens, are off by"
            f" {error[n, step].item():.2g}, where rounding is {tolerance:.2g}: {words}",
        )

    def _with_a_flip(
        self, before: Tensor, token: int, prompt: int, stop: int, tolerance: float
    ) -> Fault | None:
        texts = self.texts.clone()
        texts[0, token] = _other(texts[0, token], self.model)
        after = self._decode(texts, prompt, stop)
        changed = (after != before).any(-1)  # (2, n)
        key, T = token + 1, self.reached.shape[0]
        of_token = range(key, min(T, key + embedded_range(self.model, T)))
        may = self.reached[prompt : stop + 1, of_token.start : of_token.stop].any(-1)
        for row, wrong, words in (
            (0, changed[0].cpu() & ~may, "from which no layers lead there"),
            (1, changed[1].cpu(), "which is of another text of the batch"),
        ):
            if wrong.any():
                query = prompt + wrong.nonzero()[0].item()
                return self._fault(
                    "leak",
                    query,
                    key,
                    f"the logits at position {query}, decoded after a prompt of {prompt} tokens,"
                    f" change with the token at position {key}"
                    f"{' of text 0' if row else ''}, {words}",
                )
        whole = _whole_logits(self.model, texts)
        return self._compare(after, texts, whole, prompt, stop, tolerance)

    def _blame(
        self, text: Tensor, prompt: int, length: int, tolerance: float
    ) -> tuple[str, int, str] | None:
        """The token whose influence on the logits after ``length`` tokens is the most wrong.

        Tokens are flipped, each by itself, and what that changes by decoding is compared with what
        it changes in the whole text.

        Returns:
            The kind of fault, the position and words for it; None if there are no tokens.
        """
        if length == 0 or self.model.config.vocab_size == 1:
            return None
        tokens = torch.tensor(spread(length, _SUSPECTS, ()))
        rows = text[:length].repeat(len(tokens) + 1, 1)  # the last row stays as it is
        rows[torch.arange(len(tokens)), tokens] = _other(text[tokens], self.model)
        found = self._decode(rows, min(prompt, length), length)[:, -1]
        whole = _whole_logits(self.model, rows)[:, -1]
        moves, should = (x[:-1] - x[-1] for x in (found, whole))  # (tokens, V)
        sizes = torch.stack([moves.abs().amax(-1), should.abs().amax(-1)])  # (2, tokens)
        small, large = sizes.amin(0), sizes.amax(0)
        # What is not read, or read against the rules, shows clearly where it shows at all.
        clear = torch.where(small < _NO_INFLUENCE * large, large, 0)
        if clear.max() > tolerance:
            worst = clear.argmax().item()
            position = tokens[worst].item() + 1
            if sizes[0, worst] < sizes[1, worst]:
                return "gap", position, f"they do not depend on position {position}, and should"
            return "leak", position, f"they depend on position {position}, and should not"
        # The last token is the query's own, which changes how all others are read.
        off = (moves - should).abs().amax(-1)[: max(1, len(tokens) - 1)]
        position = tokens[off.argmax().item()].item() + 1
        return "wrong", position, f"they depend most wrongly on position {position}"

    def _fault(self, kind, query: int, key: int, what: str) -> Fault:
        return Fault(
            kind=kind,
            path=(
                f"decoder '{self.decoder.name}' with engine '{self.engine}' in"
                f" {name_of(self.model.token_embedding.weight.dtype)}"
            ),
            seq_len=self.texts.shape[1] + 1,
            query=query,
            key=key,
            what=what,
        )


def _other(tokens: Tensor, model: GPT) -> Tensor:
    """Other tokens, none of them the start symbol."""
    return (tokens + 1) % model.config.vocab_size


@torch.inference_mode()
def _logits(model: GPT, inputs: Tensor) -> Tensor:
    return model(inputs)


def _whole_logits(model: GPT, texts: Tensor) -> Tensor:
    """Logits after each prefix of ``(N, n)`` tokens, from the empty one on: ``(N, n + 1, V)``."""
    device = model.token_embedding.weight.device
    start = torch.full((len(texts), 1), model.start_token)
    return _logits(model, torch.cat([start, texts], 1).to(device))
