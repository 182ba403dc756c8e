"""What a completion's fields ask for, checked and turned into texts to be made."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparse_tx.config import SamplingConfig
from sparse_tx.data import Tokenizer
from sparse_tx.errors import UserError
from sparse_tx.generation import TextRequest
from sparse_tx.serving.bodies import CompletionBody, encode_text, shown
from sparse_tx.serving.limits import Limits
from sparse_tx.serving.refused import Refused

# OpenAI's.
_MAX_TOKENS = 16
_MOST_STOPS = 4
# OpenAI's is 5, which is few where a vocabulary has 256.
MOST_LOGPROBS = 20


@dataclass(frozen=True)
class Prompt:
    """A prompt as bytes and as tokens."""

    data: bytes
    tokens: list[int]


@dataclass(frozen=True)
class Plan:
    """A completion that can be made.

    Attributes:
        prompts: one or several.
        texts: what is made of them, prompt by prompt; none if no tokens are asked for.
        n: texts for each prompt.
        max_tokens: of each text.
        echo: whether each text begins with its prompt.
        logprobs: how many of the most probable tokens are told for each; None for no
            log-probabilities at all.
        stream: whether the answer is sent as it is made.
        include_usage: whether a stream ends with its usage.
    """

    prompts: list[Prompt]
    texts: list[TextRequest]
    n: int
    max_tokens: int
    echo: bool
    logprobs: int | None
    stream: bool
    include_usage: bool


def plan_completion(
    body: CompletionBody, tokenizer: Tokenizer, limits: Limits, model_name: str
) -> Plan:
    """Turn a body into what is to be made.

    Raises:
        Refused: it asks for what this server does not do.
    """
    _refuse_unsupported(body, model_name)
    prompts = _prompts(body, tokenizer, limits)
    n = _within("n", 1 if body.n is None else body.n, 1, limits.max_texts)
    if n * len(prompts) > limits.max_texts:
        raise Refused(
            400,
            f"{len(prompts)} prompts and n {n} make {n * len(prompts):,} texts; this server makes"
            f" up to {limits.max_texts:,} for a request",
            param="n",
        )
    wanted = _MAX_TOKENS if body.max_tokens is None else body.max_tokens
    max_tokens = _within("max_tokens", wanted, 0, limits.max_tokens_limit)
    logprobs = body.logprobs
    if logprobs is not None:
        _within("logprobs", logprobs, 0, min(MOST_LOGPROBS, tokenizer.vocab_size))
    if body.echo and logprobs is not None:
        _check_echo(prompts, n, limits)
    stops = _stops(body.stop)
    seed = secrets.randbits(62) if body.seed is None else body.seed
    try:
        settings = _settings(body)
        tokens = [torch.tensor(prompt.tokens, dtype=torch.long) for prompt in prompts]
        texts = [
            TextRequest(
                prompt=tokens[number // n],
                length=max(1, max_tokens),
                settings=settings,
                seed=seed + number,
                stop=stops,
                logprobs=logprobs,
            )
            for number in range(n * len(prompts))
        ]
    except UserError as error:
        name = str(error).split()[0]  # they begin with what is at fault
        param = name if name in CompletionBody.model_fields else None
        raise Refused(400, str(error), param=param) from error
    return Plan(
        prompts=prompts,
        texts=texts if max_tokens else [],
        n=n,
        max_tokens=max_tokens,
        echo=bool(body.echo),
        logprobs=logprobs,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
    )


def _refuse_unsupported(body: CompletionBody, model_name: str) -> None:
    if body.model is not None and body.model != model_name:
        raise Refused(
            404,
            f"the model {shown(body.model)} is not here; this server has '{model_name}'",
            param="model",
            code="model_not_found",
        )
    if body.suffix:
        raise Refused(
            400, "suffix is not supported: the model writes what follows a prompt", param="suffix"
        )
    n = 1 if body.n is None else body.n
    if body.best_of is not None and body.best_of != n:
        raise Refused(
            400,
            f"best_of is {body.best_of} and n {n}; this server gives every text that it makes, so"
            " that they must be equal: ask for more by n, with logprobs, and choose",
            param="best_of",
        )
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(body, name):
            raise Refused(
                400,
                f"{name} is {getattr(body, name)}; only 0 is supported: use repetition_penalty,"
                " which divides logits",
                param=name,
            )
    if body.logit_bias:
        raise Refused(400, "logit_bias is not supported; leave it out", param="logit_bias")
    if body.stream_options is not None and not body.stream:
        raise Refused(400, "stream_options is for streams; set stream too", param="stream_options")


def _prompts(body: CompletionBody, tokenizer: Tokenizer, limits: Limits) -> list[Prompt]:
    given = "" if body.prompt is None else body.prompt
    if isinstance(given, str):
        several = [given]
    elif not given:
        raise Refused(
            400,
            "prompt is an empty list; give one prompt at least, which may be an empty string",
            param="prompt",
        )
    else:
        several = [given] if isinstance(given[0], int) else given
    if len(several) > limits.max_texts:
        raise Refused(
            400,
            f"{len(several):,} prompts; this server makes up to {limits.max_texts:,} texts for a"
            " request",
            param="prompt",
        )
    prompts = [_prompt(each, tokenizer, limits) for each in several]
    check_length("prompt", sum(len(prompt.data) for prompt in prompts), limits)
    return prompts


def _prompt(given: str | Sequence[int], tokenizer: Tokenizer, limits: Limits) -> Prompt:
    try:
        if isinstance(given, str):
            data = encode_text(given, "prompt")
            check_length("prompt", len(data), limits)
            return Prompt(data, tokenizer.encode(data).tolist())
        for token in given:
            if not 0 <= token < tokenizer.vocab_size:
                raise UserError(
                    f"token {token} of the prompt: the model's tokens are 0 to"
                    f" {tokenizer.vocab_size - 1}"
                )
        return Prompt(tokenizer.decode(given), list(given))
    except UserError as error:
        raise Refused(400, str(error), param="prompt") from error


def check_length(name: str, n_bytes: int, limits: Limits) -> None:
    """Refuse a text, or all prompts of a request, of too many bytes.

    Raises:
        Refused: that is so.
    """
    if n_bytes > limits.max_prompt_bytes:
        raise Refused(
            400,
            f"{name} has {n_bytes:,} bytes; this server takes up to {limits.max_prompt_bytes:,}"
            " (max_prompt_bytes)",
            param=name,
        )


def _check_echo(prompts: Sequence[Prompt], n: int, limits: Limits) -> None:
    """Refuse to tell the log-probabilities of more prompts than may be given."""
    told = n * sum(len(prompt.data) for prompt in prompts)
    if told > limits.max_prompt_bytes:
        raise Refused(
            400,
            f"n is {n}, so that log-probabilities of {told:,} bytes of prompts would be told; this"
            f" server tells up to {limits.max_prompt_bytes:,}: echo once, or without logprobs",
            param="n",
        )


def _stops(given: str | list[str] | None) -> tuple[bytes, ...]:
    stops = [given] if isinstance(given, str) else given or []
    if len(stops) > _MOST_STOPS:
        raise Refused(
            400, f"stop has {len(stops)} strings; it can have {_MOST_STOPS} at most", param="stop"
        )
    found = tuple(encode_text(stop, "stop") for stop in stops)
    if not all(found):
        raise Refused(400, "stop is an empty string; it must have a character", param="stop")
    return found


def _settings(body: CompletionBody) -> SamplingConfig:
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "repetition_window")
    given = {name: getattr(body, name) for name in names}
    return SamplingConfig(**{name: value for name, value in given.items() if value is not None})


def _within(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise Refused(400, f"{name} is {value}; it must be from {least} to {most:,}", param=name)
    return value
