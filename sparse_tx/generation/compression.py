"""Lossless compression: a range coder driven by a model's predictions.

Every token takes as many bits as the model is surprised by, so that the size of a file proves the
model's bits per byte. Decoding has to predict what encoding predicted, to the last bit. That is so
because both take the same steps, in a decoder whose logits depend neither on the number of threads
nor on how many tokens it is given at once, and turn them into probabilities row by row; the coder
rounds these to whole numbers. Another kind of CPU may add up in another order: a file holds a
checksum of its first predictions, so that this is noticed at once, and one of the original.

The coder is that of the library ``constriction``.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from sparse_tx.data import Tokenizer
from sparse_tx.errors import UserError
from sparse_tx.generation.cached import CachedDecoder, IncrementalDecoder
from sparse_tx.generation.native import NativeDecoder, why_not_native
from sparse_tx.generation.samplers import NOT_FINITE
from sparse_tx.model import GPT

_MAGIC = b"\x89STX"
_VERSION = 1
# Magic, version, hash of the model, tokens, bytes, CRC-32 of predictions and of the original.
_HEADER = struct.Struct("<4sB16sQQII")
_CHECKSUM = struct.Struct("<I")  # of the header and of the code, between which it stands
_CHECKED = 1000  # predictions

_OTHER_MACHINE = (
    "this machine does not predict what the one predicted that compressed it: sums round otherwise"
    " on another kind of CPU, or in another version of this program; decompress it there"
)

Progress = Callable[[int, int], None]
"""Is called now and then, with the tokens done and the tokens in all."""

_A_WHILE = 256  # tokens


@dataclass(frozen=True)
class Compressed:
    """A compressed file, taken apart.

    Attributes:
        model: hash of the model.
        tokens: how many are coded.
        length: bytes of the original.
        predictions: CRC-32 of the probabilities of the first tokens.
        checksum: CRC-32 of the original.
        code: what the range coder wrote.
    """

    model: bytes
    tokens: int
    length: int
    predictions: int
    checksum: int
    code: bytes

    def to_bytes(self) -> bytes:
        """The whole file."""
        header = _HEADER.pack(
            _MAGIC,
            _VERSION,
            self.model,
            self.tokens,
            self.length,
            self.predictions,
            self.checksum,
        )
        return header + _CHECKSUM.pack(zlib.crc32(self.code, zlib.crc32(header))) + self.code

    @classmethod
    def from_bytes(cls, data: bytes) -> "Compressed":
        """Take a file apart.

        Raises:
            UserError: it is no such file, of another version, or damaged.
        """
        if data[: len(_MAGIC)] != _MAGIC:
            raise UserError("it was not written by compress: its first bytes are others")
        begin = _HEADER.size + _CHECKSUM.size
        if len(data) < begin:
            raise UserError(f"it is cut off: its header has {begin} bytes, it {len(data)}")
        _, version, *fields = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise UserError(
                f"it has version {version} of the format; this program reads {_VERSION}"
            )
        code = data[begin:]
        (checksum,) = _CHECKSUM.unpack_from(data, _HEADER.size)
        if zlib.crc32(code, zlib.crc32(data[: _HEADER.size])) != checksum:
            raise UserError("it is cut off or altered: its checksum is not that of its content")
        return cls(*fields, code)


def compress(
    model: GPT, tokenizer: Tokenizer, data: bytes, *, on_progress: Progress | None = None
) -> bytes:
    """Compress ``data``, whatever bytes they are.

    Args:
        model: in eval mode. On a CPU where the native step cannot run, torch has to be given one
            thread, now and in decompression: the sums of its own step may depend on the number.
        tokenizer: of the model.
        data: the bytes.
        on_progress: see ``Progress``.

    Returns:
        what ``Compressed.from_bytes`` takes apart, and ``decompress`` undoes.

    Raises:
        UserError: the tokenizer has no tokens for the data (char and bpe read UTF-8 only), or the
            model's predictions are not finite.
    """
    import constriction  # a command that does not compress need not load it

    tokens = tokenizer.encode(data)
    encoder = constriction.stream.queue.RangeEncoder()
    family = constriction.stream.model.Categorical(perfect=False)
    decoder = _decoder(model)
    symbols, predictions = np.zeros(1, dtype=np.int32), 0
    for done, (token, logits) in enumerate(zip(tokens, _along(decoder, tokens), strict=True), 1):
        symbols[0], probabilities = token, _probabilities(logits)
        encoder.encode(symbols, family, probabilities)
        if done <= _CHECKED:
            predictions = zlib.crc32(probabilities, predictions)
        if on_progress and (done % _A_WHILE == 0 or done == len(tokens)):
            on_progress(done, len(tokens))
    return Compressed(
        model=model_hash(model, tokenizer),
        tokens=len(tokens),
        length=len(data),
        predictions=predictions,
        checksum=zlib.crc32(data),
        code=encoder.get_compressed().astype("<u4").tobytes(),
    ).to_bytes()


def decompress(
    model: GPT,
    tokenizer: Tokenizer,
    compressed: Compressed,
    *,
    on_progress: Progress | None = None,
) -> bytes:
    """Give back what ``compress`` was given.

    Args:
        model: that which compressed, in eval mode.
        tokenizer: of the model.
        compressed: what ``compress`` returned, taken apart.
        on_progress: see ``Progress``.

    Raises:
        UserError: it is of another model, or was compressed where the model's sums round otherwise.
    """
    import constriction

    if compressed.model != model_hash(model, tokenizer):
        raise UserError(
            f"it was compressed by another model (hash {compressed.model.hex()}, this one has"
            f" {model_hash(model, tokenizer).hex()}); give the checkpoint that compressed it"
        )
    decoder = _decoder(model)
    words = np.frombuffer(compressed.code, dtype="<u4").astype(np.uint32)
    coded = constriction.stream.queue.RangeDecoder(words)
    family = constriction.stream.model.Categorical(perfect=False)
    tokens, predictions = np.zeros(compressed.tokens, dtype=tokenizer.dtype), 0
    logits = decoder.prefill([torch.empty(0, dtype=torch.long)])
    for done in range(1, compressed.tokens + 1):
        probabilities = _probabilities(logits[0])
        try:
            token = int(coded.decode(family, probabilities)[0])
        except AssertionError as error:  # what the library raises on code of other predictions
            raise UserError(_OTHER_MACHINE) from error
        tokens[done - 1] = token
        if done <= _CHECKED:
            predictions = zlib.crc32(probabilities, predictions)
        if done == min(_CHECKED, compressed.tokens) and predictions != compressed.predictions:
            raise UserError(_OTHER_MACHINE)
        if done < compressed.tokens:
            logits = decoder.decode_one_token(torch.tensor([token]))
        if on_progress and (done % _A_WHILE == 0 or done == compressed.tokens):
            on_progress(done, compressed.tokens)
    data = tokenizer.decode(tokens)
    if len(data) != compressed.length or zlib.crc32(data) != compressed.checksum:
        raise UserError(_OTHER_MACHINE)
    return data


def model_hash(model: GPT, tokenizer: Tokenizer) -> bytes:
    """What names a model: 16 bytes of the SHA-256 of its configuration, tokenizer and weights."""
    config = {
        name: value
        for name, value in asdict(model.config).items()
        if name not in ("engine", "dropout", "recompute", "chunk", "head_chunk", "stored_precision")
    }
    found = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    found.update(tokenizer.fingerprint.encode())
    for name, weight in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return found.digest()[:16]


def _decoder(model: GPT) -> IncrementalDecoder:
    if why_not_native(model) is None:
        return NativeDecoder(model, by_steps=True)
    return CachedDecoder(model)


def _along(decoder: IncrementalDecoder, tokens: Sequence[int]) -> Iterator[Tensor]:
    """The logits ``(V,)`` before each of the tokens."""
    if not len(tokens):
        return
    yield decoder.prefill([torch.empty(0, dtype=torch.long)])[0]
    yield from decoder.decode_tokens([int(token) for token in tokens[:-1]])


def _probabilities(logits: Tensor) -> np.ndarray:
    """``(1, V)`` float32; one row at a time, so that it is computed alike in any company.

    Raises:
        UserError: the logits are not finite.
    """
    exact = logits.cpu().numpy().astype(np.float64)
    with np.errstate(invalid="ignore"):
        weights = np.exp(exact - exact.max())
        total = weights.sum()
    if not np.isfinite(total):
        raise UserError(NOT_FINITE)
    return (weights / total).astype(np.float32)[None]
