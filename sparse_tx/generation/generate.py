"""The generation loop: ``generate`` makes tokens, ``generate_texts`` texts that each end alone."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_tx.config import SamplingConfig
from sparse_tx.data import Tokenizer
from sparse_tx.errors import UserError, UserTypeError
from sparse_tx.generation.decoders import make_decoder
from sparse_tx.generation.samplers import Sampler
from sparse_tx.generation.streaming import StopStream

FinishReason = Literal["length", "stop"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextRequest:
    """A text to be made: what it begins with, how it goes on and where it ends.

    Raises:
        UserError: a number is out of range, or a stop string is empty.
    """

    prompt: Tensor | Sequence[int] = ()
    """``(P,)`` token ids, which may be none; kept as int64 on the CPU. The start symbol is put
    before it in generation."""
    length: int | None
    """Tokens to generate; None for no end but a stop string."""
    settings: SamplingConfig = field(default_factory=SamplingConfig)
    """How a token is drawn; by default from the model's own distribution."""
    seed: int = 0
    """Of the text's own random numbers."""
    stop: Sequence[bytes] = ()
    """Stop strings, looked for in what is generated: the text ends right before the first
    (``StopStream``)."""
    logprobs: int | None = None
    """With each token give its log-probability and so many of the most probable tokens; None for
    neither."""

    def __post_init__(self):
        prompt = torch.as_tensor(self.prompt, dtype=torch.long).cpu()
        object.__setattr__(self, "prompt", prompt)
        if self.length is not None and self.length < 1:
            raise UserError(f"length is {self.length}; it must be 1 or more")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; it must be from 0 to 2^63 - 1")
        if isinstance(self.stop, bytes) or not all(isinstance(each, bytes) for each in self.stop):
            raise UserTypeError(f"stop is {self.stop!r}; it must be a sequence of bytes: [b'END']")
        if not all(self.stop):
            raise UserError("a stop string is empty; it must have a byte at least")
        if self.logprobs is not None and self.logprobs < 0:
            raise UserError(f"logprobs is {self.logprobs}; it must be 0 (the token alone) or more")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse what a model of ``vocab_size`` tokens cannot make.

        Raises:
            UserError: the prompt has a token that is none of the model's, or ``logprobs`` asks for
                more tokens than there are.
        """
        unknown = self.prompt[(self.prompt < 0) | (self.prompt >= vocab_size)]
        if len(unknown):
            raise UserError(
                f"token {unknown[0].item()} of the prompt: the model's tokens are 0 to"
                f" {vocab_size - 1}"
            )
        if self.logprobs is not None and self.logprobs > vocab_size:
            raise UserError(
                f"logprobs is {self.logprobs}; the model has {vocab_size} tokens, so that it must"
                " be that or less"
            )


@dataclass(frozen=True)
class TextToken:
    """A token of a text, and what the model thought of it.

    Log-probabilities are natural logarithms under the model's own distribution: before penalties,
    temperature and all other filters. They are there if the request asks for them.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens in its place with their log-probabilities, the most probable first;
    the token itself is among them if it is one of them."""


@dataclass(frozen=True)
class TextPiece:
    """What became known of a text when one more token was generated."""

    data: bytes
    """Its next bytes, which may end within a character. Bytes that may begin a stop string are held
    back until that is decided, so that none may come with this token and several with another."""
    tokens: tuple[TextToken, ...]
    """The tokens that begin in ``data``. Tokens of a stop string are none of the text's; one that
    begins before it and reaches into it is."""
    finish_reason: FinishReason | None
    """``"stop"`` before a stop string, ``"length"`` after the last token; None before the end."""


def generate(
    model: nn.Module,
    prompt: Tensor | Sequence[int],
    *,
    length: int | None,
    settings: SamplingConfig | None = None,
    seed: int = 0,
    num_samples: int = 1,
) -> Iterator[Tensor]:
    """Continue a prompt, token by token, in several independent ways at once.

    Sample n has its own random numbers, those of ``seed + n``: it is the same however many samples
    are made with it, as far as the model's rounding does not depend on the size of its batch. The
    model is put in eval mode for each step and left as it was between them.

    Args:
        model: a ``GPT``, on any device.
        prompt: ``(P,)`` token ids; may be empty. The start symbol is put before it here. A text
            that outgrows ``model.config.seq_len`` loses its oldest half (see ``context``).
        length: tokens to generate; None for no end.
        settings: how a token is drawn; from the model's own distribution if not given.
        seed: of the first sample.
        num_samples: N.

    Yields:
        ``(N,)`` int64 on the CPU, ``length`` times: the next token of each sample.

    Raises:
        UserError: a number is out of range (at the call), or the model's logits are not finite (at
            the step).
    """
    if num_samples < 1:
        raise UserError(f"num_samples is {num_samples}; it must be 1 or more")
    settings = settings or SamplingConfig()
    requests = [
        TextRequest(prompt=prompt, length=length, settings=settings, seed=seed + n)
        for n in range(num_samples)
    ]
    batch = _Batch(model, requests)
    return (batch.step()[0] for _ in (count() if length is None else range(length)))


def generate_texts(
    model: nn.Module, tokenizer: Tokenizer, requests: Sequence[TextRequest]
) -> Iterator[tuple[int, TextPiece]]:
    """Make several texts at once, each of which ends on its own.

    A text does not depend on which others are made with it, as far as the model's rounding does
    not. A text that has ended leaves the batch; closing the iterator ends them all. For the model
    and for texts that outgrow its context, see ``generate``.

    Args:
        model: a ``GPT``, on any device.
        tokenizer: the model's, by which tokens become bytes.
        requests: N texts.

    Yields:
        ``(n, piece)``: of text n, what its next token brings; for all that have not ended, in their
        order, again and again. The last piece of a text has its ``finish_reason``.

    Raises:
        UserError: a request is not one that the model can answer (at the call), or the model's
            logits are not finite (at the step).
    """
    batch = _Batch(model, requests)
    return _pieces(batch, [TextMaker(request, tokenizer) for request in requests])


def _pieces(batch: "_Batch", texts: list["TextMaker"]) -> Iterator[tuple[int, TextPiece]]:
    growing = list(range(len(texts)))  # the text of each row of the batch
    while growing:
        tokens, logits = batch.step()
        wanted = [texts[n].request.logprobs for n in growing]
        rows = []  # that go on
        for row, token in enumerate(text_tokens(tokens.tolist(), logits, wanted)):
            piece = texts[growing[row]].add(token)
            if piece.finish_reason is None:
                rows.append(row)
            yield growing[row], piece
        if len(rows) < len(growing):
            growing = [growing[row] for row in rows]
            if rows:
                batch.keep(rows)


def text_tokens(
    ids: Sequence[int], logits: Tensor, wanted: Sequence[int | None]
) -> list[TextToken]:
    """Tokens with the log-probabilities that are asked for.

    Args:
        ids: N tokens.
        logits: ``(N, V)``, by which they were drawn.
        wanted: for each, how many of the most probable tokens to give, or None for no
            log-probability at all.
    """
    found = [TextToken(id) for id in ids]
    rows = [row for row, k in enumerate(wanted) if k is not None]
    if rows:
        logprobs = logits[rows].double().log_softmax(-1)
        top = most_probable(logprobs, max(wanted[row] for row in rows))
        for index, row in enumerate(rows):
            own = logprobs[index, ids[row]].item()
            found[row] = TextToken(ids[row], own, top[index][: wanted[row]])
    return found


def most_probable(logprobs: Tensor, top: int) -> list[tuple[tuple[int, float], ...]]:
    """Of each row of ``(n, V)`` log-probabilities the ``top`` largest: ids and values."""
    values, ids = logprobs.sort(dim=-1, descending=True, stable=True)
    pairs = zip(ids[:, :top].tolist(), values[:, :top].tolist(), strict=True)
    return [tuple(zip(*pair, strict=True)) for pair in pairs]


class TextMaker:
    """One text as its tokens come: its bytes up to a stop string, and the tokens that begin there.

    Args:
        request: what ends it.
        tokenizer: by which tokens become bytes.
    """

    def __init__(self, request: TextRequest, tokenizer: Tokenizer):
        self.request = request
        self._tokenizer = tokenizer
        self._stops = StopStream(request.stop)
        self._n_tokens = self._n_bytes = 0  # generated
        self._n_passed = 0  # bytes that are known to be text
        self._waiting: deque[tuple[int, TextToken]] = deque()  # each after the byte it begins at

    def add(self, token: TextToken) -> TextPiece:
        """Append a token; returns what is known of the text by it. None may follow the last."""
        data = self._tokenizer.decode([token.id])
        self._waiting.append((self._n_bytes, token))
        self._n_tokens += 1
        self._n_bytes += len(data)
        passed, finish_reason = self._stops.feed(data), None
        if self._stops.stopped:
            finish_reason = "stop"
        elif self._n_tokens == self.request.length:
            passed, finish_reason = passed + self._stops.finish(), "length"
        self._n_passed += len(passed)
        tokens = []
        while self._waiting and self._waiting[0][0] < self._n_passed:
            tokens.append(self._waiting.popleft()[1])
        return TextPiece(data=passed, tokens=tuple(tokens), finish_reason=finish_reason)


class _Batch:
    """Texts that grow together, a token each at a time.

    Raises:
        UserError: a request is not one that the model can answer.
    """

    def __init__(self, model: nn.Module, requests: Sequence[TextRequest]):
        vocab_size = model.config.vocab_size
        for request in requests:
            request.check_vocabulary(vocab_size)
        self._model = model
        self._prompts = [request.prompt for request in requests]
        self._sampler = Sampler(
            self._prompts,
            [request.settings for request in requests],
            [request.seed for request in requests],
            vocab_size,
        )
        self._decoder = None
        lengths = [request.length for request in requests]
        self._room = None  # tokens that no text will exceed, if that is known
        if None not in lengths:
            self._room = max((len(r.prompt) + r.length for r in requests), default=0)

    def step(self) -> tuple[Tensor, Tensor]:
        """Append a token to each text: ``(N,)`` int64 on the CPU, and the ``(N, V)`` logits."""
        with _eval_mode(self._model):
            if self._decoder is None:
                self._decoder = make_decoder(self._model, self._room)
                logits = self._decoder.prefill(self._prompts)
            else:
                logits = self._decoder.decode_one_token(self._tokens)
        self._tokens = self._sampler.draw(logits)
        return self._tokens, logits

    def keep(self, rows: list[int]) -> None:
        """Go on with these of the texts, in this order; not before the first step."""
        self._decoder.keep(rows)
        self._sampler.keep(rows)
        self._tokens = self._tokens[rows]


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """The caller has the model between two tokens, so the mode is set and restored at each."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
