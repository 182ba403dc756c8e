"""Texts as the protocol tells of them: characters, tokens as strings, offsets, usage."""

from collections.abc import Sequence
from typing import Any

from sparse_tx.data import Tokenizer
from sparse_tx.generation import TextPiece, TextToken, Utf8Stream
from sparse_tx.serving.completions import Plan, Prompt
from sparse_tx.serving.surprise import Scores


def token_text(data: bytes) -> str:
    """A token as a string: its characters, or ``bytes:\\xe2\\x82`` where it has no whole ones."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class Choice:
    """One text of an answer, as it grows.

    Bytes that are no UTF-8 become U+FFFD, and half a character is held back until it is whole. So
    offsets, which count characters of the text, are those of the character that a token begins in.

    Args:
        index: of the text in the answer.
        prompt: what it continues.
        tokenizer: the model's.
        plan: of the answer.
        prompt_scores: of the prompt's tokens, where they are to be told.
    """

    def __init__(
        self,
        index: int,
        prompt: Prompt,
        tokenizer: Tokenizer,
        plan: Plan,
        prompt_scores: Scores | None = None,
    ):
        self._index, self._tokenizer = index, tokenizer
        self._stream, self._offsets = Utf8Stream(), Utf8Stream()
        self._characters = 0  # before the next token
        self._text, self._logprobs = "", None if plan.logprobs is None else _no_logprobs()
        self.finish_reason: str | None = None
        self._over = False  # the end has been taken
        self.generated = 0
        if plan.echo:
            self._text = self._stream.feed(prompt.data)
            if prompt_scores is not None:
                scored = zip(prompt.tokens, prompt_scores.logprobs, prompt_scores.top, strict=True)
                self._add_logprobs([TextToken(*each) for each in scored])
            else:
                self._characters = len(self._offsets.feed(prompt.data))
        if not plan.max_tokens:
            self._end("length")

    def add(self, piece: TextPiece) -> None:
        """Let the text grow."""
        self.generated += 1
        self._text += self._stream.feed(piece.data)
        if self._logprobs is not None:
            self._add_logprobs(piece.tokens)
        if piece.finish_reason is not None:
            self._end(piece.finish_reason)

    def take(self) -> dict[str, Any] | None:
        """What is new since the last time, as an entry of ``choices``; None if nothing is."""
        told = self._logprobs is not None and self._logprobs["tokens"]
        if self._over or not (self._text or told or self.finish_reason):
            return None
        self._over = self.finish_reason is not None
        entry = {
            "index": self._index,
            "text": self._text,
            "logprobs": self._logprobs,
            "finish_reason": self.finish_reason,
        }
        self._text, self._logprobs = "", None if self._logprobs is None else _no_logprobs()
        return entry

    def _end(self, finish_reason: str) -> None:
        self._text += self._stream.finish()
        self.finish_reason = finish_reason

    def _add_logprobs(self, tokens: Sequence[TextToken]) -> None:
        for token in tokens:
            data = self._tokenizer.decode([token.id])
            self._logprobs["tokens"].append(token_text(data))
            self._logprobs["token_logprobs"].append(token.logprob)
            self._logprobs["top_logprobs"].append(
                {token_text(self._tokenizer.decode([id])): value for id, value in token.top}
            )
            self._logprobs["text_offset"].append(self._characters)
            self._characters += len(self._offsets.feed(data))


def _no_logprobs() -> dict[str, list]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def usage(plan: Plan, choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens that were read and made; a prompt counts once, and a stop string's tokens count."""
    prompt = sum(len(each.tokens) for each in plan.prompts)
    made = sum(choice.generated for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
