"""Prompts and texts as JSON Lines: one JSON object a line."""

import base64
import codecs
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from torch import nn

from sparse_tx.config import SamplingConfig
from sparse_tx.data import Tokenizer
from sparse_tx.errors import UserError, nearest
from sparse_tx.generation import TextPiece, TextRequest, TextToken, generate_texts

Pieces = Iterable[tuple[int, TextPiece]]

_SAMPLING = {field.name: get_args(field.type) or (field.type,) for field in fields(SamplingConfig)}
# What a prompt's object may hold, and of which kinds.
_FIELDS = {
    "prompt": (str, list),
    "id": (str, int),
    "length": (int,),
    "seed": (int,),
    "stop": (str, list),
    "logprobs": (int, NoneType),
    **_SAMPLING,
}
_IN_WORDS = {
    str: "a string",
    list: "a list",
    int: "a whole number",
    float: "a number",
    NoneType: "null",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One text to make, and what it is called in the output."""

    id: str | int
    """Of its prompt."""
    sample: int
    """Its number among the samples of the prompt, from 0."""
    request: TextRequest
    model: str = ""
    """What tells the model from others."""

    def head(self) -> dict[str, Any]:
        """What every line begins with, and what tells one line from another.

        Of what a text depends on beside its seed, there is a digest.
        """
        request = self.request
        made_of = {
            "model": self.model,
            "prompt": request.prompt.tolist(),
            "length": request.length,
            "settings": asdict(request.settings),
            "stop": [stop.hex() for stop in request.stop],
            "logprobs": request.logprobs,
        }
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
        return {"id": self.id, "sample": self.sample, "seed": request.seed, "request": digest}


def make_jobs(request: TextRequest, id: str | int, num_samples: int) -> list[Job]:
    """So many samples of one prompt; sample n has the seed ``request.seed + n``."""
    return [
        Job(id=id, sample=n, request=replace(request, seed=request.seed + n))
        for n in range(num_samples)
    ]


# --- Prompts ------------------------------------------------------------------------------------


def parse_prompts(
    data: bytes, name: str, tokenizer: Tokenizer, default: TextRequest, num_samples: int
) -> list[Job]:
    """Read prompts, one object a line; empty lines are passed over.

    An object has a ``prompt``, which is text or a list of token ids, and may have

    * ``id``, a string or a whole number, which names it in the output; otherwise that is the number
      of its line;
    * ``length``, ``seed``, ``stop`` (a string or a list of them), ``logprobs`` and every setting of
      ``SamplingConfig``; otherwise they are those of ``default``. Prompts without a seed have
      different ones, so that equal prompts go on differently: the default's, plus ``num_samples``
      for every prompt before.

    Args:
        data: the lines, in UTF-8.
        name: where they are from, for messages.
        tokenizer: the model's.
        default: how a prompt is continued that says nothing else.
        num_samples: texts to make of each prompt.

    Returns:
        ``num_samples`` jobs for each prompt, in the order of the lines.

    Raises:
        UserError: there is no prompt, or a line is not such an object; which line it is.
    """
    jobs: list[Job] = []
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found = {"id": number, "seed": default.seed + len(jobs)} | _read_object(line)
            jobs += make_jobs(_request(found, tokenizer, default), found["id"], num_samples)
        except UserError as error:
            raise UserError(f"line {number} of {name}: {error}") from error
    if not jobs:
        raise UserError(f'there is no prompt in {name}; a line of it may be {{"prompt": "Once"}}')
    return jobs


def _read_object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(
            f"the byte 0x{line[error.start]:02x} is not UTF-8 text; give a prompt of such bytes as"
            " a list of token ids"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"this is not JSON: {error.msg} at character {error.colno}") from None
    except (ValueError, RecursionError) as error:  # too many digits, too deep a nest
        raise UserError(f"this JSON cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f'{_short(found)} is no object, such as {{"prompt": "Once"}}')
    found = {name: _checked(name, value) for name, value in found.items()}
    if "prompt" not in found:
        raise UserError('the object has no "prompt"; an empty one is written "prompt": ""')
    return found


def _checked(name: str, value: Any) -> Any:
    if name not in _FIELDS:
        raise UserError(
            f"there is no field '{name}': {nearest(name, _FIELDS)}the fields are"
            f" {', '.join(_FIELDS)}"
        )
    kinds = _FIELDS[name]
    if float in kinds and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return float("inf")  # which no setting may be
    if isinstance(value, bool) or not isinstance(value, kinds):
        words = " or ".join(_IN_WORDS[kind] for kind in kinds)
        raise UserError(f"{name} is {_short(value)}; it must be {words}")
    return value


def _request(found: dict[str, Any], tokenizer: Tokenizer, default: TextRequest) -> TextRequest:
    request = replace(
        default,
        prompt=_tokens(found["prompt"], tokenizer),
        length=found.get("length", default.length),
        settings=replace(default.settings, **{k: found[k] for k in _SAMPLING if k in found}),
        seed=found["seed"],
        stop=_stops(found["stop"]) if "stop" in found else default.stop,
        logprobs=found.get("logprobs", default.logprobs),
    )
    request.check_vocabulary(tokenizer.vocab_size)
    return request


def _tokens(prompt: str | list, tokenizer: Tokenizer) -> Sequence[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(_utf8("prompt", prompt)).astype("int64")
    for id in prompt:
        if type(id) is not int or not 0 <= id < tokenizer.vocab_size:
            raise UserError(
                f"{_short(id)} in the prompt is no token id: those of this model are 0 to"
                f" {tokenizer.vocab_size - 1}"
            )
    return prompt


def _stops(stop: str | list) -> tuple[bytes, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    for each in stops:
        if not isinstance(each, str):
            raise UserError(f"{_short(each)} in stop is no string")
    return tuple(_utf8("stop", each) for each in stops)


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} has \\u{ord(text[error.start]):04x} in it, which is half of a character; give"
            " both halves"
        ) from None


def _short(value: Any) -> str:
    """A JSON value in a message, cut if it is long."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# --- Texts --------------------------------------------------------------------------------------


class Lines:
    """Where texts go, one a line: to a file that only ever holds whole lines, or to stdout.

    Args:
        path: the file, which is made with its first line; None for standard output.
        jobs: what all of its lines are of, in their order.
        resume: go on after the lines that the file holds, which are of the first jobs. What a kill
            left of a line is written over.

    Attributes:
        written: lines so far, those found in the file included.

    Raises:
        UserError: the file cannot be read, holds something and ``resume`` is not given, or holds
            other lines than those of ``jobs``.
    """

    def __init__(self, path: Path | None, jobs: Sequence[Job], *, resume: bool):
        self.path, self.written, self._size = path, 0, 0
        if path is None or not path.exists():
            return
        try:
            found = path.read_bytes()
        except OSError as error:
            raise UserError(f"the output '{path}' cannot be read: {error.strerror}") from error
        *lines, cut = found.split(b"\n")
        if found and not resume:
            raise UserError(
                f"the output '{path}' is not empty; go on after its lines with --resume, or name"
                " another file with --out"
            )
        heads = [(json.dumps(job.head())[:-1] + ", ").encode() for job in jobs]
        for number, line in enumerate([*lines, cut] if cut else lines):
            head = heads[number] if number < len(heads) else None
            is_cut = number == len(lines)
            if head is None or not (line.startswith(head) or (is_cut and head.startswith(line))):
                raise UserError(
                    f"line {number + 1} of the output '{path}' is not of these prompts, seeds,"
                    " samples and settings in this order, or of another model; resume with those of"
                    " the run that wrote it, or name another file with --out"
                )
        self.written, self._size = len(lines), len(found) - len(cut)

    def append(self, line: dict[str, Any]) -> None:
        """Write a line.

        Raises:
            UserError: the file cannot be written; it holds the lines before.
            OSError: standard output cannot be written.
        """
        text = json.dumps(line) + "\n"
        if self.path is None:
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            self._append_to_file(text.encode())
        self.written += 1

    def _append_to_file(self, text: bytes) -> None:
        existed = self.path.exists()
        try:
            with self.path.open("ab") as file:
                file.truncate(self._size)
                file.write(text)
        except BaseException as error:
            with suppress(OSError):
                if existed:
                    os.truncate(self.path, self._size)
                else:
                    self.path.unlink()
            if isinstance(error, OSError):
                raise UserError(
                    f"the output '{self.path}' cannot be written: {error.strerror}"
                ) from error
            raise
        self._size += len(text)


def write_texts(
    model: nn.Module,
    tokenizer: Tokenizer,
    jobs: Sequence[Job],
    lines: Lines,
    *,
    batch_size: int,
    watch: Callable[[Pieces, Sequence[TextRequest]], Pieces],
) -> None:
    """Make the texts of ``jobs`` that ``lines`` lacks, and write each once all before it are.

    Args:
        model: a ``GPT``, on any device.
        tokenizer: the model's.
        jobs: all of them.
        lines: where they go.
        batch_size: texts that are made at once.
        watch: given what is being made of which requests, passes it on.

    Raises:
        UserError: the model's logits are not finite, or the file cannot be written.
        OSError: standard output cannot be written.
    """
    for first in range(lines.written, len(jobs), batch_size):
        batch = jobs[first : first + batch_size]
        requests = [job.request for job in batch]
        made: list[list[TextPiece]] = [[] for _ in batch]
        ended = set()
        for n, piece in watch(generate_texts(model, tokenizer, requests), requests):
            made[n].append(piece)
            if piece.finish_reason is not None:
                ended.add(n)
            while (next_one := lines.written - first) in ended:
                lines.append(make_line(batch[next_one], made[next_one], tokenizer))
                made[next_one] = []


def make_line(job: Job, pieces: Sequence[TextPiece], tokenizer: Tokenizer) -> dict[str, Any]:
    """The object that says what was made of a job.

    Its ``text`` is what was generated, without the prompt. Where that is not UTF-8, U+FFFD stands
    for what cannot be read, and ``bytes`` has all of it in base64. ``tokens`` are the ids; with
    ``logprobs``, each of them has an entry there (``TextToken``), in which its ``text`` is of its
    bytes alone.
    """
    data = b"".join(piece.data for piece in pieces)
    tokens = [token for piece in pieces for token in piece.tokens]
    text = data.decode(errors="replace")
    line = job.head() | {"finish_reason": pieces[-1].finish_reason, "text": text}
    if text.encode() != data:
        line["bytes"] = base64.b64encode(data).decode()
    line["tokens"] = [token.id for token in tokens]
    if job.request.logprobs is not None:
        line["logprobs"] = list(_logprobs(tokens, tokenizer))
    return line


def _logprobs(tokens: Sequence[TextToken], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    def entry(id: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([id]).decode(errors="replace")
        return {"id": id, "text": text, "logprob": logprob}

    for token in tokens:
        top = [entry(id, logprob) for id, logprob in token.top]
        yield entry(token.id, token.logprob) | {"top": top}
