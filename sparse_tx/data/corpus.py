"""Prepare a corpus once, on disk: split by bytes, tokenized, memory-mapped and cached."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np

from sparse_tx.data.compression import PIECE
from sparse_tx.data.images import ImageShape, shape_in_words
from sparse_tx.data.sources import Source, open_source
from sparse_tx.data.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    check_kind,
    load_tokenizer,
    train_tokenizer,
)
from sparse_tx.errors import UserError
from sparse_tx.files import remove_abandoned

SPLITS = ("train", "valid", "test")

Progress = Callable[[str, int], None]

# Part of every cache key: raise it when what is prepared from the same source changes.
_VERSION = 1

_BYTES = "bytes.bin"
_META = "corpus.json"
_UNFINISHED = "unfinished-"


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text, or images, as three arrays of tokens, in the order of the source.

    Attributes:
        spec: the source as the user wrote it.
        fingerprint: SHA-256 of the source's bytes, in hexadecimal.
        tokenizer: what made the tokens.
        train, valid, test: read-only memory-mapped 1-D arrays of ``tokenizer.dtype``.
        n_bytes: how many bytes of text each split has, by name.
        image_shape: H, W, C of images, of which each split has whole ones; None for a text.
    """

    spec: str
    fingerprint: str
    tokenizer: Tokenizer
    train: np.memmap
    valid: np.memmap
    test: np.memmap
    n_bytes: dict[str, int]
    image_shape: ImageShape | None = None

    def n_images(self, split: str) -> int:
        """How many images a split has; 0 of a text."""
        return self.n_bytes[split] // prod(self.image_shape) if self.image_shape else 0


def prepare_corpus(
    spec: str,
    *,
    tokenizer: str = "byte",
    vocab_size: int = 256,
    split: tuple[float, float, float] = (90, 5, 5),
    image_shape: tuple[int, ...] = (),
    cache_dir: Path,
    existing_tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Read, split and tokenize a source, or find in the cache that this was done before.

    The source is read once. The splits follow one another in its order and are cut by bytes; for
    text tokenizers a cut moves forward to the next character. Each split is tokenized by itself.
    BPE is trained on the train split alone; the alphabet of ``char`` is that of the whole corpus,
    for a character without a symbol could not be scored. Images are bytes, and a split has whole
    ones. The result gets its name in the cache when it is complete, so that processes may prepare
    the same corpus at once.

    Args:
        spec: the source, see ``open_source``.
        tokenizer: ``"byte"``, ``"char"`` or ``"bpe"``.
        vocab_size: tokens of a bpe tokenizer; the other kinds have the size that they have.
        split: shares of train, valid and test in per cent of the bytes. A share may be 0.
        image_shape: H, W, C of images, if the source does not say itself that it is of some.
        cache_dir: folder for what is prepared and downloaded; made if need be.
        existing_tokenizer: use this one, whatever ``tokenizer`` and ``vocab_size`` say.
        progress: called with what is being done and how many bytes of it are done.

    Raises:
        UserError: the source or the tokenizer cannot be used (see ``open_source`` and
            ``train_tokenizer``); shares that are no split; a corpus too small for its split; images
            in other tokens than bytes, or a part of one; no room or no right to write in
            ``cache_dir``.
    """
    _check_shares(split)
    cache_dir = Path(os.path.expanduser(cache_dir))
    if existing_tokenizer is None:
        check_kind(tokenizer, vocab_size)
        if tokenizer == "byte":
            existing_tokenizer = ByteTokenizer()
    if existing_tokenizer is not None:
        wanted = existing_tokenizer.fingerprint
    else:
        wanted = f"bpe {vocab_size}" if tokenizer == "bpe" else tokenizer
    source = open_source(spec, cache_dir, image_shape=image_shape)
    parts = [_VERSION, source.fingerprint, wanted, [float(share) for share in split]]
    if source.image_shape:
        _check_are_bytes(spec, wanted.split()[0])
        parts.append(list(source.image_shape))
    key = json.dumps(parts)
    folder = cache_dir / f"corpus-{hashlib.sha256(key.encode()).hexdigest()[:24]}"
    preparation = _Preparation(split, tokenizer, vocab_size, existing_tokenizer, progress)
    try:
        if corpus := _open_prepared(folder, spec):
            return replace(corpus, image_shape=source.image_shape)
        cache_dir.mkdir(parents=True, exist_ok=True)
        remove_abandoned(cache_dir, f"{_UNFINISHED}*")
        with tempfile.TemporaryDirectory(
            dir=cache_dir, prefix=_UNFINISHED, ignore_cleanup_errors=True
        ) as unfinished:
            preparation.run(source, Path(unfinished))
            _move_into_place(Path(unfinished), folder)
        corpus = _open_prepared(folder, spec)
    except OSError as error:  # of the cache: what reading the source raises is a UserError already
        raise UserError(
            f"the corpus cannot be prepared in '{cache_dir}' ({error.strerror or error}); make room"
            " there, or choose another folder with --cache_dir or, by the environment,"
            " XDG_CACHE_HOME"
        ) from None
    assert corpus is not None, f"{folder} was complete a moment ago"
    return replace(corpus, image_shape=source.image_shape)


@dataclass(frozen=True)
class _Preparation:
    shares: tuple[float, float, float]
    kind: str
    vocab_size: int
    tokenizer: Tokenizer | None
    progress: Progress | None

    def run(self, source: Source, folder: Path) -> None:
        """Write everything about ``source`` that ``_open_prepared`` reads into ``folder``."""
        raw = folder / _BYTES
        size, fingerprint = self._spool(source, raw)
        is_byte = isinstance(self.tokenizer, ByteTokenizer)
        unit = _unit(source, size)
        cuts = [0, *self._cuts(size, unit, None if is_byte else raw), size]
        spans = dict(zip(SPLITS, pairwise(cuts), strict=True))
        for (name, (begin, end)), share in zip(spans.items(), self.shares, strict=True):
            if share and end == begin:
                raise UserError(
                    f"the source '{source.spec}' has {_amount(source, size)}, too few for its"
                    f" {name} split of {share:g} per cent; choose a larger one or give {name}"
                    " another share"
                )
        tokenizer = self.tokenizer or self._train(raw, size, spans["train"])
        if is_byte:  # the bytes are the tokens
            arrays = {name: (_BYTES, begin, end - begin) for name, (begin, end) in spans.items()}
        else:
            arrays = {}
            for name, span in spans.items():
                file = f"{name}.bin"
                arrays[name] = (file, 0, self._encode(tokenizer, raw, *span, folder / file))
            raw.unlink()
        tokenizer.save(folder)
        n_bytes = {name: end - begin for name, (begin, end) in spans.items()}
        meta = {"fingerprint": fingerprint, "n_bytes": n_bytes, "arrays": arrays}
        (folder / _META).write_text(json.dumps(meta, indent=1), encoding="utf-8")

    def _spool(self, source: Source, raw: Path) -> tuple[int, str]:
        """Copy the source's bytes to ``raw``, for only then is their number known."""
        digest, size = hashlib.sha256(), 0
        with open(raw, "wb") as file:
            for chunk in source.chunks():
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                if self.progress:
                    self.progress("reading", size)
        return size, digest.hexdigest()

    def _cuts(self, size: int, unit: int, text: Path | None) -> Iterator[int]:
        """Yield where train and valid end, in bytes: at multiples of ``unit``.

        Never within a character of ``text``, if there is one.
        """
        for n in (1, 2):
            cut = int(size * sum(map(Fraction, self.shares[:n])) / 100)
            cut -= cut % unit
            if text:
                with open(text, "rb") as file:
                    file.seek(cut)
                    # 10xxxxxx continues a character; more than three of them are no UTF-8.
                    while cut < size and file.read(1)[0] & 0xC0 == 0x80:
                        cut += 1
            yield cut

    def _train(self, raw: Path, size: int, train: tuple[int, int]) -> Tokenizer:
        begin, end = train if self.kind == "bpe" else (0, size)
        chunks = self._chunks(f"training {self.kind}", raw, begin, end)
        return train_tokenizer(self.kind, self.vocab_size, chunks)

    def _encode(self, tokenizer: Tokenizer, raw: Path, begin: int, end: int, target: Path) -> int:
        """Write the tokens of bytes ``begin`` to ``end`` of ``raw``; return how many they are."""
        count = 0
        chunks = self._chunks(f"encoding {target.stem}", raw, begin, end)
        with open(target, "wb") as file:
            for ids in tokenizer.encode_stream(chunks, start=begin):
                file.write(ids.data)
                count += len(ids)
        return count

    def _chunks(self, what: str, path: Path, begin: int, end: int) -> Iterator[bytes]:
        """Yield bytes ``begin`` to ``end`` of ``path`` chunk by chunk and report them as done."""
        with open(path, "rb") as file:
            file.seek(begin)
            for at in range(begin, end, PIECE):
                yield file.read(min(PIECE, end - at))
                if self.progress:
                    self.progress(what, min(at + PIECE, end) - begin)


def _check_are_bytes(spec: str, kind: str) -> None:
    if kind != ByteTokenizer.kind:
        raise UserError(
            f"the tokenizer is {kind}, and '{spec}' is images, whose tokens are bytes; leave"
            " --tokenizer out, or take a model of byte tokens"
        )


def _unit(source: Source, size: int) -> int:
    """Bytes that a cut must not divide: those of an image, or 1."""
    if source.image_shape is None:
        return 1
    unit = prod(source.image_shape)
    if size % unit:
        raise UserError(
            f"the source '{source.spec}' has {size:,} bytes, {size % unit:,} more than whole images"
            f" of {shape_in_words(source.image_shape)} ({unit:,} bytes each); give the shape that"
            " its images have, H,W,C, with --image_shape"
        )
    return unit


def _amount(source: Source, size: int) -> str:
    if source.image_shape is None:
        return f"{size:,} bytes"
    count = size // prod(source.image_shape)
    return "1 image" if count == 1 else f"{count:,} images"


def _check_shares(split: tuple[float, float, float]) -> None:
    if len(split) != 3 or not all(share >= 0 for share in split) or abs(sum(split) - 100) > 1e-6:
        shown = ", ".join(f"{share:g}" for share in split)
        raise UserError(
            f"the split is {shown}; give the shares of train, valid and test in per cent: three"
            " numbers, none negative, that sum to 100, such as 90, 5, 5"
        )


def _move_into_place(unfinished: Path, folder: Path) -> None:
    try:
        os.rename(unfinished, folder)
    except OSError:
        # Another process was quicker, and a folder that is not empty cannot be replaced: use that.
        if not (folder / _META).exists():
            raise


def _open_prepared(folder: Path, spec: str) -> Corpus | None:
    """Open what was prepared in ``folder``; None if nothing was, or if it is no longer whole."""
    if not folder.exists():
        return None
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        tokenizer = load_tokenizer(folder)
        n_bytes = {name: int(meta["n_bytes"][name]) for name in SPLITS}
        splits = {}
        for name in SPLITS:
            file, offset, count = meta["arrays"][name]
            if (folder / file).stat().st_size < offset + count * tokenizer.dtype.itemsize:
                raise ValueError(f"{file} is truncated")
            splits[name] = _map(folder / file, tokenizer.dtype, offset, count)
        return Corpus(spec, str(meta["fingerprint"]), tokenizer, n_bytes=n_bytes, **splits)
    # Whatever is damaged, a UserError of the tokenizer included, is a ValueError.
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        shutil.rmtree(folder)
        return None


def _map(path: Path, dtype: np.dtype, offset: int, count: int) -> np.memmap:
    if count:
        return np.memmap(path, dtype, mode="r", offset=offset, shape=(count,))
    empty = np.empty(0, dtype).view(np.memmap)  # of no bytes the system makes no map
    empty.flags.writeable = False
    return empty
