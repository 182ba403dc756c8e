"""Tokenizers: bytes, characters, or byte-level BPE; all give back exactly the bytes they got.

``char`` and ``bpe`` are kept as a ``tokenizer.json`` of the ``tokenizers`` library, which other
programs read too.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from sparse_tx.errors import UserError, nearest

KINDS = ("byte", "char", "bpe")

_FILE = "tokenizer.json"

# Characters that are given to BPE at once. Short enough to share a chunk out among the cores.
_PIECE = 1 << 14

# Up to the last place where text may be cut without changing its BPE tokens. GPT-2's rule, by which
# text falls into words before BPE, always ends a word between a visible character and a space.
_UP_TO_CUT = re.compile(r".*\S(?=[ \n])", re.DOTALL)

_CODE_POINTS = 0x110000


class Tokenizer:
    """Turns bytes into token ids and back, exactly: ``decode(encode(data)) == data``.

    Attributes:
        kind: ``"byte"``, ``"char"`` or ``"bpe"``.
        token_bytes: (V,) int64, how many bytes of text each id stands for.
    """

    kind: str
    token_bytes: np.ndarray

    @property
    def vocab_size(self) -> int:
        """How many ids there are, V."""
        return len(self.token_bytes)

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds every id."""
        return np.min_scalar_type(self.vocab_size - 1)

    @property
    def fingerprint(self) -> str:
        """A text that two tokenizers share only if they are equal."""
        return f"{self.kind} {hashlib.sha256(self.to_json().encode()).hexdigest()}"

    def encode(self, data: bytes) -> np.ndarray:
        """Turn ``data`` into ids, a 1-D array of ``dtype``.

        Raises:
            UserError: ``data`` is not UTF-8 (char, bpe) or has a character without an id (char).
        """
        parts = list(self.encode_stream([data]))
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def encode_stream(self, chunks: Iterable[bytes], start: int = 0) -> Iterator[np.ndarray]:
        """Yield what ``encode`` gives for all ``chunks`` together, array by array.

        ``chunks`` may end anywhere, within a character too. ``start`` is the byte offset of the
        first one in what the user knows, for messages.
        """
        raise NotImplementedError

    def decode(self, ids) -> bytes:
        """Turn ``ids`` (1-D, anything that NumPy takes for integers) into the bytes they stand for.

        The bytes may end within a character, as BPE tokens do.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        ids = np.asarray(ids)
        if not ids.size:
            return b""
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            bad = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise UserError(
                f"token {bad}: the ids of this tokenizer are 0 to {self.vocab_size - 1}"
            )
        return self._decode(ids)

    def _decode(self, ids: np.ndarray) -> bytes:
        raise NotImplementedError

    def to_json(self) -> str:
        """The content of ``tokenizer.json``."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` into ``folder``."""
        (Path(folder) / _FILE).write_text(self.to_json(), encoding="utf-8")


class ByteTokenizer(Tokenizer):
    """Every byte is its own id: 256 symbols, any data, nothing to train."""

    kind = "byte"

    def __init__(self):
        self.token_bytes = np.ones(256, np.int64)

    def encode_stream(self, chunks, start=0):
        for chunk in chunks:
            yield np.frombuffer(chunk, np.uint8)

    def _decode(self, ids):
        return ids.astype(np.uint8).tobytes()

    def to_json(self):
        return json.dumps({"version": "1.0", "model": {"type": "Byte"}})


class CharTokenizer(Tokenizer):
    """Every distinct character (Unicode code point) of ``alphabet`` has an id, in its order."""

    kind = "char"

    def __init__(self, alphabet: str):
        self.alphabet = alphabet
        self._code_points = _code_points(alphabet)
        self.token_bytes = np.array([len(c.encode()) for c in alphabet], np.int64)
        self._id_of = np.full(_CODE_POINTS, -1, np.int32)
        self._id_of[self._code_points] = np.arange(len(alphabet))

    # The arrays above do what the library would, without an object for every token.

    def encode_stream(self, chunks, start=0):
        for text, offset in decode_utf8(chunks, start):
            ids = self._id_of[_code_points(text)]
            if (unknown := ids < 0).any():
                at = int(unknown.argmax())
                offset += len(text[:at].encode())
                raise UserError(
                    f"the character {text[at]!r} (U+{ord(text[at]):04X}) at byte {offset:,} has no"
                    f" symbol among the {self.vocab_size} of this char tokenizer; leave it out, or"
                    " train with --tokenizer bpe or byte, which know all text"
                )
            yield ids.astype(self.dtype)

    def _decode(self, ids):
        return self._code_points[ids].tobytes().decode("utf-32-le").encode()

    def to_json(self):
        import tokenizers as hf

        vocab = {character: number for number, character in enumerate(self.alphabet)}
        # No unknown token: with none in the vocabulary, the library refuses as this class does.
        tokenizer = hf.Tokenizer(hf.models.WordLevel(vocab, unk_token=""))
        tokenizer.pre_tokenizer = hf.pre_tokenizers.Split(hf.Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = hf.decoders.Fuse()
        return tokenizer.to_str()


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding: knows all text, in fewer tokens than bytes.

    ``hf`` is the trained ``tokenizers.Tokenizer``.
    """

    kind = "bpe"

    def __init__(self, hf):
        self._hf = hf
        vocab = hf.get_vocab()
        words = sorted(vocab, key=vocab.__getitem__)
        byte_of = byte_of_symbol()
        self._bytes_of = [bytes(byte_of[symbol] for symbol in word) for word in words]
        self.token_bytes = np.array([len(data) for data in self._bytes_of], np.int64)

    def encode_stream(self, chunks, start=0):
        tail = ""
        for text, _ in decode_utf8(chunks, start):
            *pieces, tail = _cut(tail + text)
            yield from self._encode_pieces(pieces)
        yield from self._encode_pieces([tail] if tail else [])

    def _encode_pieces(self, pieces: list[str]) -> Iterator[np.ndarray]:
        for encoding in self._hf.encode_batch_fast(pieces):
            yield np.array(encoding.ids, self.dtype)

    def _decode(self, ids):
        return b"".join(map(self._bytes_of.__getitem__, ids.tolist()))

    def to_json(self):
        return self._json

    @cached_property
    def _json(self) -> str:
        return self._hf.to_str()


def train_tokenizer(kind: str, vocab_size: int, chunks: Iterable[bytes]) -> Tokenizer:
    """Make a tokenizer for the text of ``chunks``.

    Args:
        kind: ``"byte"``, ``"char"`` (a symbol for each distinct character) or ``"bpe"``.
        vocab_size: how many tokens ``"bpe"`` gets (fewer if the text is too short for as many);
            the others have the size that they have.
        chunks: the training text, cut anywhere.

    Raises:
        UserError: unknown kind; ``vocab_size`` too small; text that is not UTF-8; no text.
    """
    check_kind(kind, vocab_size)
    if kind == "byte":
        return ByteTokenizer()
    return _train_char(chunks) if kind == "char" else _train_bpe(vocab_size, chunks)


def check_kind(kind: str, vocab_size: int) -> None:
    """Refuse what ``train_tokenizer`` cannot make, before any text is read.

    Raises:
        UserError: unknown kind, or ``vocab_size`` too small for bpe.
    """
    if kind not in KINDS:
        raise UserError(
            f"unknown tokenizer '{kind}': {nearest(str(kind), KINDS)}the kinds are"
            f" {', '.join(KINDS)}"
        )
    if kind == "bpe" and vocab_size < 257:
        raise UserError(
            f"a bpe tokenizer of {vocab_size} tokens has nothing to merge: 256 are the bytes"
            " themselves; take a vocab_size of 257 or more"
        )


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer that ``Tokenizer.save`` wrote into ``folder``.

    Raises:
        UserError: no ``tokenizer.json`` there, or not one that this module wrote.
    """
    path = Path(folder) / _FILE
    try:
        text = path.read_text(encoding="utf-8")
        model = json.loads(text)["model"]
        if model["type"] == "Byte":
            return ByteTokenizer()
        if model["type"] == "WordLevel":
            return CharTokenizer("".join(sorted(model["vocab"], key=model["vocab"].__getitem__)))
        if model["type"] == "BPE":
            return BPETokenizer(_read_hf(text))
    except OSError as error:
        raise UserError(
            f"no tokenizer can be read from '{path}' ({error.strerror}); give the folder of a run"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"'{path}' is no tokenizer of sparse_tx ({error!r}); save it again"
        ) from None
    raise UserError(
        f"'{path}' holds a tokenizer of type '{model['type']}', which sparse_tx does not make; use"
        f" one of the kinds {', '.join(KINDS)}"
    )


def decode_utf8(chunks: Iterable[bytes], start: int = 0) -> Iterator[tuple[str, int]]:
    """Yield the text of ``chunks``, which may end within a character, piece by piece.

    Each piece comes with the byte offset of its beginning; the first chunk's is ``start``.

    Raises:
        UserError: the bytes are not UTF-8; at which offset.
    """
    rest, offset = b"", start
    last = False
    chunks = iter(chunks)
    while not last:
        chunk = next(chunks, None)
        last = chunk is None
        data = rest + (chunk or b"")
        try:
            text, used = codecs.utf_8_decode(data, "strict", last)
        except UnicodeDecodeError as error:
            raise UserError(
                f"the byte 0x{data[error.start]:02x} at offset {offset + error.start:,} is not"
                " UTF-8 text, which the char and bpe tokenizers need; use --tokenizer byte"
            ) from None
        if text:
            yield text, offset
        rest = data[used:]
        offset += used


def _read_hf(text: str):
    import tokenizers as hf

    try:
        return hf.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(str(error)) from None


def _train_char(chunks: Iterable[bytes]) -> CharTokenizer:
    seen = np.zeros(_CODE_POINTS, bool)
    for text, _ in decode_utf8(chunks):
        seen[_code_points(text)] = True
    if not seen.any():
        raise UserError("a char tokenizer needs text to take its characters from; there is none")
    return CharTokenizer("".join(map(chr, seen.nonzero()[0])))


def _train_bpe(vocab_size: int, chunks: Iterable[bytes]) -> BPETokenizer:
    import tokenizers as hf

    tokenizer = hf.Tokenizer(hf.models.BPE())
    # No normaliser and no added space: what comes out is what went in.
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((text for text, _ in decode_utf8(chunks)), trainer)
    return BPETokenizer(tokenizer)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _cut(text: str) -> Iterator[str]:
    """Yield ``text`` in pieces of at most ``_PIECE`` characters, cut between words if at all.

    Where a piece ends depends on the characters of that piece alone.
    """
    start = 0
    while len(text) - start > _PIECE:
        found = _UP_TO_CUT.match(text, start, start + _PIECE)
        stop = found.end() if found else start + _PIECE
        yield text[start:stop]
        start = stop
    yield text[start:]


def byte_of_symbol() -> dict[str, int]:
    """The byte that each symbol of byte-level BPE stands for.

    GPT-2's table: bytes that Latin-1 prints stand for themselves, the others come from U+0100 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(b): b for b in printed} | {chr(0x100 + n): b for n, b in enumerate(others)}
