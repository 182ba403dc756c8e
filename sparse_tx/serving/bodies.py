"""What clients send, checked before anything is done with it.

Types are checked here, and every mistake is told in one sentence that names the field, its value
and what it must be. Ranges are checked where they are known: ``SamplingConfig``, ``TextRequest``
and ``completions``.
"""

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from sparse_tx.errors import nearest
from sparse_tx.serving.refused import Refused

# Of a value in a message.
_LONGEST_SHOWN = 60
# Of a whole number: no field takes more than 20 of them.
_MOST_DIGITS = 100


_Item = TypeVar("_Item")


class _FirstMistake(FailFast):
    """The first mistake in a list is enough: a list may have a million."""

    def __hash__(self) -> int:  # which a part of a union has to have
        return hash(self.fail_fast)


_Many = Annotated[list[_Item], _FirstMistake()]


class Body(BaseModel):
    """A JSON object whose fields are those below and no others; nothing is turned into its type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(Body):
    """How a stream is sent."""

    include_usage: bool | None = None


class CompletionBody(Body):
    """``POST /v1/completions``: OpenAI's fields, and some of sparse_tx.

    The descriptions complete "it must be". Null is as good as nothing in every field.
    """

    model: str | None = Field(None, description="the model's name, a string")
    prompt: str | _Many[str] | _Many[int] | _Many[_Many[int]] | None = Field(
        None, description="a string, a list of token ids, or a list of strings or of such lists"
    )
    max_tokens: int | None = Field(None, description="a whole number")
    temperature: float | None = Field(None, description="a number")
    top_p: float | None = Field(None, description="a number")
    n: int | None = Field(None, description="a whole number")
    stream: bool | None = Field(None, description="true or false")
    stream_options: StreamOptions | None = Field(
        None, description='an object such as {"include_usage": true}'
    )
    logprobs: int | None = Field(None, description="a whole number")
    echo: bool | None = Field(None, description="true or false")
    stop: str | _Many[str] | None = Field(None, description="a string, or a list of up to 4")
    seed: int | None = Field(None, description="a whole number")
    user: str | None = Field(None, description="a string")

    best_of: int | None = Field(None, description="a whole number")
    suffix: str | None = Field(None, description="null")
    presence_penalty: float | None = Field(None, description="0")
    frequency_penalty: float | None = Field(None, description="0")
    logit_bias: dict[str, Any] | None = Field(None, description="empty")

    top_k: int | None = Field(None, description="a whole number")
    min_p: float | None = Field(None, description="a number")
    repetition_penalty: float | None = Field(None, description="a number")
    repetition_window: int | None = Field(None, description="a whole number")


class SurpriseBody(Body):
    """``POST /surprise``."""

    text: str = Field(description="a string")
    top: int | None = Field(None, description="a whole number")


AnyBody = TypeVar("AnyBody", bound=Body)


def parse_body(kind: type[AnyBody], data: bytes) -> AnyBody:
    """Read a request's body.

    Raises:
        Refused: it is no JSON, no object, or has a field that is unknown or of another type.
    """
    try:
        body = json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, parse_int=_whole_number
        )
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8 (at byte {error.start:,})") from None
    except RecursionError:
        raise Refused(400, "the body is no JSON that can be read: it is nested too deep") from None
    except ValueError as error:
        raise Refused(400, f"the body is no valid JSON: {error}") from None
    if not isinstance(body, dict):
        example = '{"prompt": "a"}'
        raise Refused(400, f"the body is {shown(body)}; it must be an object, such as {example}")
    known = kind.model_fields
    for name in body:
        if name not in known:
            raise Refused(
                400,
                f"unknown field {shown(name)}: {nearest(name, known)}the fields are"
                f" {', '.join(known)}",
                param=shown(name)[1:-1],
            )
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise _mistyped(kind, body, str(error.errors()[0]["loc"][0])) from None


def encode_text(text: str, name: str) -> bytes:
    """UTF-8 of a field's text.

    Raises:
        Refused: it holds half a surrogate pair, which JSON can write and UTF-8 cannot.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise Refused(
            400,
            f"{name} has {half} at character {error.start:,}, which is half a surrogate pair and no"
            " character; leave it out, or write both halves",
            param=name,
        ) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _whole_number(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _mistyped(kind: type[Body], body: dict[str, Any], name: str) -> Refused:
    """What is wrong with a field that is not of its type."""
    must_be = kind.model_fields[name].description
    if name not in body:
        return Refused(400, f"{name} is missing; it must be {must_be}", param=name)
    return Refused(400, f"{name} is {shown(body[name])}; it must be {must_be}", param=name)


def shown(value: Any) -> str:
    """A value as JSON in ASCII, cut short where it is long."""
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."
