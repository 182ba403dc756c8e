"""The text that a model is scored on, in the tokens of its own or of another maker's tokenizer."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console

from sparse_tx.commands.preparing import read_with_status
from sparse_tx.config import DataConfig
from sparse_tx.data import ByteTokenizer, Corpus, Tokenizer, shape_in_words
from sparse_tx.data.corpus import SPLITS
from sparse_tx.errors import UserError
from sparse_tx.evaluation import tokens_within

# Tokens that become bytes again at one time, for the digest of the text.
_PIECE = 1 << 20
# These continue a character of UTF-8.
_CONTINUATION = bytes(range(0x80, 0xC0))

_WHOLE = (0.0, 100.0, 0.0)
"""Shares by which the whole source is one split, the validation's."""


@dataclass(frozen=True, eq=False)
class ScoredText:
    """A text in a model's tokens.

    Attributes:
        tokens: 1-D ids.
        token_bytes: bytes of text that each of them stands for.
        n_scored: how many of them, at the end, are scored.
        title: what it is, for a person.
        identity: the same for the JSON file: source, split, and the SHA-256 of the scored bytes.
    """

    tokens: np.ndarray
    token_bytes: np.ndarray
    n_scored: int
    title: str
    identity: dict[str, Any]


def tokenized_text(
    console: Console,
    data: DataConfig,
    split: str,
    tokenizer: Tokenizer,
    *,
    max_bytes: int | None = None,
) -> ScoredText:
    """Prepare a split as training does.

    Args:
        console: shows how far reading is.
        data: the source, and its shares.
        split: valid, test, or all for the whole source as one text.
        tokenizer: the model's.
        max_bytes: keep only tokens that lie wholly within so many bytes.

    Raises:
        UserError: the source or its shares cannot be used; the split is empty.
    """
    corpus, name = _read(console, data, split, tokenizer)
    tokens = tokens_within(getattr(corpus, name), tokenizer.token_bytes, max_bytes)
    # Of the smallest type that will do: there is one number for each token.
    lengths = tokenizer.token_bytes
    token_bytes = lengths.astype(np.min_scalar_type(lengths.max()))[tokens]
    pieces = (tokenizer.decode(tokens[at : at + _PIECE]) for at in range(0, len(tokens), _PIECE))
    return _text(
        corpus, data, split, tokens, token_bytes, pieces, f"tokens of a {tokenizer.kind} tokenizer"
    )


def encoded_text(
    console: Console,
    data: DataConfig,
    split: str,
    encode: Callable[[bytes], tuple[np.ndarray, np.ndarray]],
    *,
    max_bytes: int | None = None,
    skips_first: bool = False,
) -> ScoredText:
    """Read a split as text and give it to another maker's tokenizer, all at once.

    Splits are cut between characters, where they are for the text tokenizers of sparse_tx.

    Args:
        console: shows how far reading is.
        data: the source, and its shares.
        split: valid, test, or all for the whole source as one text.
        encode: gives the tokens of a text, and the bytes that each stands for.
        max_bytes: take only the characters that lie wholly within so many bytes.
        skips_first: whether the first token is not scored.

    Raises:
        UserError: as ``tokenized_text``, or by ``encode``.
    """
    corpus, name = _read(console, data, split, ByteTokenizer())
    text = _within(_whole_characters(corpus, name), max_bytes)
    with console.status("encoding"):
        tokens, token_bytes = encode(text)
    first = int(skips_first)
    scored = text[token_bytes[:first].sum() :]
    return _text(corpus, data, split, tokens, token_bytes, [scored], "tokens", first)


def _read(
    console: Console, data: DataConfig, split: str, tokenizer: Tokenizer
) -> tuple[Corpus, str]:
    """The corpus, and the name of the split in it that holds the text."""
    if split == "all":
        return read_with_status(console, replace(data, split=_WHOLE), tokenizer), "valid"
    if dict(zip(SPLITS, data.split, strict=False)).get(split) == 0:
        shares = ",".join(f"{share:g}" for share in data.split)
        raise UserError(
            f"the {split} split of '{data.data}' is empty, for the shares of train, valid and test"
            f" are {shares}; choose another --split, or other --shares"
        )
    return read_with_status(console, data, tokenizer), split


def _text(
    corpus: Corpus,
    data: DataConfig,
    split: str,
    tokens: np.ndarray,
    token_bytes: np.ndarray,
    scored_pieces: Iterator[bytes] | list[bytes],
    kind: str,
    first: int = 0,
) -> ScoredText:
    digest, n_bytes = hashlib.sha256(), 0
    for piece in scored_pieces:
        digest.update(piece)
        n_bytes += len(piece)
    n_scored = len(tokens) - first
    what = "the whole" if split == "all" else f"the {split} split"
    return ScoredText(
        tokens=tokens,
        token_bytes=token_bytes,
        n_scored=n_scored,
        title=f"{what} of {data.data}: {n_bytes:,} bytes, {n_scored:,} {kind}{_images(corpus)}",
        identity={
            "source": data.data,
            "source_sha256": corpus.fingerprint,
            "split": split,
            "shares": None if split == "all" else list(data.split),
            "bytes": n_bytes,
            "sha256": digest.hexdigest(),
        }
        | ({"image_shape": list(corpus.image_shape)} if corpus.image_shape else {}),
    )


def _images(corpus: Corpus) -> str:
    return f", images of {shape_in_words(corpus.image_shape)}" if corpus.image_shape else ""


def _whole_characters(corpus: Corpus, split: str) -> bytes:
    """The characters that begin in a split of bytes.

    One that the cut between two splits divides belongs to the earlier.
    """
    at = SPLITS.index(split)
    own = getattr(corpus, split).tobytes()
    if any(len(getattr(corpus, name)) for name in SPLITS[:at]):
        own = own[_continuing(own) :]
    later = b"".join(getattr(corpus, name)[:3].tobytes() for name in SPLITS[at + 1 :])
    return own + later[: _continuing(later)] if own else own


def _continuing(data: bytes) -> int:
    """Bytes at the beginning that continue a character; more than three are no UTF-8."""
    head = data[:3]
    return len(head) - len(head.lstrip(_CONTINUATION))


def _within(data: bytes, max_bytes: int | None) -> bytes:
    """The whole characters within so many bytes at the beginning."""
    end = len(data) if max_bytes is None else min(max_bytes, len(data))
    while 0 < end < len(data) and data[end] in _CONTINUATION:
        end -= 1
    return data[:end]
