"""A prepared corpus is the source, split by bytes; complete in the cache or not there."""

import builtins
import errno
import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest

from sparse_tx.data import corpus as corpus_module
from sparse_tx.data.corpus import SPLITS, prepare_corpus
from sparse_tx.data.tokenizers import train_tokenizer
from sparse_tx.errors import UserError
from sparse_tx.folders import default_cache_dir

BYTES = hashlib.shake_256(b"corpus").digest(2003)
TEXT = "Übung 漢字 😀 wörds in a row\n" * 211


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return str(path)


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "raw.bin"
    path.write_bytes(BYTES)
    return str(path)


def parts(corpus) -> list[np.ndarray]:
    return [getattr(corpus, name) for name in SPLITS]


def test_bytes_are_split_in_order(raw, cache):
    corpus = prepare_corpus(raw, cache_dir=cache)
    assert corpus.n_bytes == {"train": 1802, "valid": 100, "test": 101}
    assert [len(part) for part in parts(corpus)] == [1802, 100, 101]
    assert b"".join(part.tobytes() for part in parts(corpus)) == BYTES
    assert corpus.fingerprint == hashlib.sha256(BYTES).hexdigest()
    assert corpus.spec == raw and corpus.tokenizer.kind == "byte"
    for part in parts(corpus):
        assert isinstance(part, np.memmap) and part.dtype == np.uint8
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 1


@pytest.mark.parametrize("kind", ["char", "bpe"])
@pytest.mark.parametrize("share", range(40, 48))  # some cuts fall within a character
def test_text_is_cut_between_characters(kind, share, source, cache):
    corpus = prepare_corpus(
        source, tokenizer=kind, vocab_size=269, split=(share, 31, 69 - share), cache_dir=cache
    )
    data = TEXT.encode()
    begin = 0
    for name, wanted in zip(SPLITS, (share, share + 31, 100), strict=True):
        text = corpus.tokenizer.decode(getattr(corpus, name))
        end = begin + len(text)
        assert text.decode() == data[begin:end].decode()
        assert corpus.n_bytes[name] == len(text)
        assert 0 <= end - len(data) * wanted // 100 <= 3
        assert corpus.tokenizer.token_bytes[getattr(corpus, name)].sum() == len(text)
        begin = end
    assert begin == len(data)


def test_bpe_is_trained_on_the_train_split_alone(tmp_path, cache):
    path = tmp_path / "two.txt"
    path.write_text("abcabd " * 90 + "xyzxyw " * 10)
    made = prepare_corpus(
        str(path), tokenizer="bpe", vocab_size=261, split=(90, 5, 5), cache_dir=cache
    ).tokenizer
    assert made.to_json() == train_tokenizer("bpe", 261, [b"abcabd " * 90]).to_json()


def test_char_knows_the_characters_of_every_split(tmp_path, cache):
    path = tmp_path / "late.txt"
    path.write_text("a" * 95 + "é" * 5)
    corpus = prepare_corpus(str(path), tokenizer="char", cache_dir=cache)
    assert corpus.tokenizer.decode(corpus.test).decode() == "é" * 3
    assert corpus.tokenizer.vocab_size == 2


def test_a_share_may_be_zero(raw, cache):
    corpus = prepare_corpus(raw, split=(0, 0, 100), cache_dir=cache)
    assert [len(part) for part in parts(corpus)] == [0, 0, 2003]
    assert corpus.test.tobytes() == BYTES
    assert isinstance(corpus.train, np.memmap) and not corpus.train.flags.writeable


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_second_call_reads_nothing(kind, source, cache, monkeypatch):
    options = {"tokenizer": kind, "vocab_size": 277, "cache_dir": cache}
    first = prepare_corpus(source, **options)
    monkeypatch.setattr(corpus_module._Preparation, "run", None)
    second = prepare_corpus(source, **options)
    for a, b in zip(parts(first), parts(second), strict=True):
        assert np.array_equal(a, b) and a.dtype == b.dtype
    assert second.fingerprint == first.fingerprint and second.n_bytes == first.n_bytes
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint


def test_what_matters_is_part_of_the_cache_key(source, cache):
    def prepare(**changes):
        prepare_corpus(source, cache_dir=cache, **changes)
        return len(os.listdir(cache))

    assert prepare() == 1
    assert prepare(vocab_size=512) == 1  # nothing to a byte tokenizer
    assert prepare(split=(80, 10, 10)) == 2
    assert prepare(tokenizer="char") == 3
    assert prepare(tokenizer="bpe", vocab_size=300) == 4
    assert prepare(tokenizer="bpe", vocab_size=301) == 5
    Path(source).write_text("changed " * 101)
    assert prepare() == 6


def test_existing_tokenizer_is_used(source, tmp_path, cache):
    existing = train_tokenizer("bpe", 271, ["wörds in a row".encode()])
    corpus = prepare_corpus(source, tokenizer="char", cache_dir=cache, existing_tokenizer=existing)
    assert corpus.tokenizer.fingerprint == existing.fingerprint
    head = TEXT.encode()[: corpus.n_bytes["train"]]
    assert corpus.train.tolist() == existing.encode(head).tolist()
    narrow = train_tokenizer("char", 0, [b"abc"])
    with pytest.raises(UserError, match=r"'Ü' .* at byte 0 "):
        prepare_corpus(source, cache_dir=cache, existing_tokenizer=narrow)


def test_progress_is_reported(source, cache):
    calls = []
    prepare_corpus(
        source,
        tokenizer="bpe",
        vocab_size=300,
        cache_dir=cache,
        progress=lambda what, done: calls.append((what, done)),
    )
    n = len(TEXT.encode())
    corpus = prepare_corpus(source, tokenizer="bpe", vocab_size=300, cache_dir=cache)
    assert calls == [
        ("reading", n),
        ("training bpe", corpus.n_bytes["train"]),
        *((f"encoding {name}", corpus.n_bytes[name]) for name in SPLITS),
    ]


def test_two_at_once_give_one_corpus(raw, cache):
    inner = []

    def prepare_the_same(what, done):
        if not inner:
            inner.append(None)
            inner[0] = prepare_corpus(raw, cache_dir=cache)

    outer = prepare_corpus(raw, cache_dir=cache, progress=prepare_the_same)
    assert np.array_equal(outer.train, inner[0].train)
    assert inner[0].test.tobytes() == outer.test.tobytes() == BYTES[-101:]
    assert len(os.listdir(cache)) == 1


@pytest.mark.parametrize(
    ("kind", "allowed"), [("byte", 0), ("bpe", 0), ("bpe", 1), ("bpe", 2), ("bpe", 3)]
)
def test_a_full_disk_leaves_nothing(kind, allowed, source, cache, monkeypatch):
    writes = []

    class Disk(io.FileIO):
        def write(self, data):
            if len(writes) == allowed:
                raise OSError(errno.ENOSPC, "No space left on device")
            writes.append(self.name)
            return super().write(data)

    def open_on_disk(path, mode):
        return Disk(path, "w") if "w" in mode else builtins.open(path, mode)

    options = {"tokenizer": kind, "vocab_size": 300, "cache_dir": cache}
    monkeypatch.setattr(corpus_module, "open", open_on_disk, raising=False)
    with pytest.raises(UserError, match=r"No space left on device.*XDG_CACHE_HOME"):
        prepare_corpus(source, **options)
    assert len(writes) == allowed and os.listdir(cache) == []
    monkeypatch.undo()
    corpus = prepare_corpus(source, **options)
    assert b"".join(map(corpus.tokenizer.decode, parts(corpus))) == TEXT.encode()


def test_what_killed_processes_left_goes_after_a_day(raw, cache):
    old, young = cache / "unfinished-old", cache / "unfinished-young"
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "bytes.bin").write_bytes(b"half a text")
    for path in (old, old / "bytes.bin", young):  # a file of the young one is still written to
        os.utime(path, (1e9, 1e9))
    prepare_corpus(raw, cache_dir=cache)
    assert not old.exists() and young.exists()


def test_an_interruption_leaves_nothing(raw, cache):
    def interrupt(what, done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_corpus(raw, cache_dir=cache, progress=interrupt)
    assert os.listdir(cache) == []


def test_a_cache_that_lost_bytes_is_made_again(raw, cache):
    prepare_corpus(raw, cache_dir=cache)
    (file,) = cache.glob("*/bytes.bin")
    os.truncate(file, 1000)
    assert prepare_corpus(raw, cache_dir=cache).test.tobytes() == BYTES[-101:]


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
@pytest.mark.parametrize("file", ["corpus.json", "tokenizer.json"])
@pytest.mark.parametrize(
    "content", [None, b"", b"half", b"\xff\xfe", b"[]", b"{}", b'{"arrays": 3}']
)
def test_a_damaged_cache_is_made_again(kind, file, content, source, cache):
    options = {"tokenizer": kind, "vocab_size": 277, "cache_dir": cache}
    prepare_corpus(source, **options)
    (path,) = cache.glob(f"*/{file}")
    whole = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    corpus = prepare_corpus(source, **options)
    assert b"".join(map(corpus.tokenizer.decode, parts(corpus))) == TEXT.encode()
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written(raw, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot be prepared in .*file"):
        prepare_corpus(raw, cache_dir=tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    "split", [(90, 5, 6), (110, -5, -5), (90, 10), (float("nan"), 50, 50), (0.9, 0.05, 0.05)]
)
def test_shares_that_are_no_split(split, raw, cache):
    with pytest.raises(UserError, match="sum to 100"):
        prepare_corpus(raw, split=split, cache_dir=cache)


def test_fractional_shares(raw, cache):
    corpus = prepare_corpus(raw, split=(33.3, 33.3, 33.4), cache_dir=cache)
    assert corpus.n_bytes == {"train": 666, "valid": 667, "test": 670}


def test_corpus_too_small(tmp_path, cache):
    path = tmp_path / "small.txt"
    path.write_text("0123456789")
    with pytest.raises(UserError, match=r"small\.txt' has 10 bytes, too few for its valid split"):
        prepare_corpus(str(path), cache_dir=cache)
    assert os.listdir(cache) == []


def test_bad_tokenizer_is_refused_before_reading(cache):
    for kind, message in (("bite", "did you mean 'byte'"), ("bpe", "257")):
        with pytest.raises(UserError, match=message):
            prepare_corpus("no such source", tokenizer=kind, cache_dir=cache)


def test_bytes_that_are_no_text(raw, cache):
    with pytest.raises(UserError, match="--tokenizer byte"):
        prepare_corpus(raw, tokenizer="char", cache_dir=cache)
    assert os.listdir(cache) == []


def test_default_cache_dir(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == Path("/somewhere/sparse_tx")
    for relative in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        monkeypatch.setenv("HOME", "/home/someone")
        assert default_cache_dir() == Path("/home/someone/.cache/sparse_tx")
