"""Tokenizers give back exactly what they were given."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_tx.data import tokenizers
from sparse_tx.data.tokenizers import ByteTokenizer, load_tokenizer, train_tokenizer
from sparse_tx.errors import UserError

PROSE = (
    "It's the year 2019: naïve  Ünïcode,\n\n\tжизнь 漢字 😀! don't\r\n the end of the text\n" * 11
)

quick = settings(max_examples=60, deadline=None)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
SPACED = st.text("ab é漢\n\t'\u00a0\x1f\x85.1", min_size=1)


@pytest.fixture(scope="module")
def bpe():
    return train_tokenizer("bpe", 307, [PROSE.encode()])


def assert_exact(tokenizer, data: bytes):
    ids = tokenizer.encode(data)
    assert ids.ndim == 1 and ids.dtype == tokenizer.dtype
    assert tokenizer.decode(ids) == data
    assert tokenizer.decode(ids.tolist()) == data
    assert tokenizer.token_bytes[ids].sum() == len(data)


@quick
@given(st.binary())
def test_bytes_go_round(data):
    assert_exact(ByteTokenizer(), data)
    assert ByteTokenizer().encode(data).tolist() == list(data)


@quick
@given(TEXTS)
def test_characters_go_round(text):
    tokenizer = train_tokenizer("char", 0, [text.encode()])
    assert_exact(tokenizer, text.encode())
    assert tokenizer.vocab_size == len(set(text))
    assert len(tokenizer.encode(text.encode())) == len(text)


@quick
@given(st.one_of(TEXTS, SPACED))
def test_bpe_goes_round(text):
    assert_exact(train_tokenizer("bpe", 263, [text.encode()]), text.encode())


@quick
@given(st.one_of(TEXTS, SPACED))
def test_bpe_goes_round_with_text_it_was_not_trained_on(bpe, text):
    assert_exact(bpe, text.encode())


def test_bpe_shortens_text(bpe):
    assert bpe.vocab_size == 307
    assert len(bpe.encode(PROSE.encode())) < 0.7 * len(PROSE.encode())


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_empty_text(kind):
    tokenizer = train_tokenizer(kind, 300, [PROSE.encode()])
    assert tokenizer.encode(b"").shape == (0,) and tokenizer.encode(b"").dtype == tokenizer.dtype
    assert tokenizer.decode([]) == b""


@quick
@given(st.one_of(TEXTS, SPACED), st.lists(st.integers(0, 40), max_size=5), st.sampled_from([3, 17]))
def test_a_stream_may_be_cut_anywhere(bpe, text, cuts, piece):
    """Chunks end within characters and words, pieces are short; the ids are those of the whole."""
    data = text.encode()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    chunks = [data[a:b] for a, b in pairwise(edges)]
    char = train_tokenizer("char", 0, chunks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "_PIECE", piece)
        for tokenizer in (ByteTokenizer(), char, bpe):
            streamed = np.concatenate(list(tokenizer.encode_stream(chunks)))
            assert np.array_equal(streamed, tokenizer.encode(data))


@quick
@given(
    st.lists(st.sampled_from(["don't", "é漢", "12", "!?", "\x1f\x1fa", "a\u00a0b", "x\ty"])),
    st.lists(st.sampled_from([" ", "  ", "\n", "\n ", " \t", " \r\n"]), min_size=1),
)
def test_cutting_between_words_does_not_change_bpe(bpe, words, gaps):
    text = "".join(word + gaps[n % len(gaps)] for n, word in enumerate(words))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "_PIECE", 19)
        assert bpe.encode(text.encode()).tolist() == bpe._hf.encode(text).ids


def test_characters_are_those_of_the_library():
    hf = pytest.importorskip("tokenizers")
    tokenizer = train_tokenizer("char", 0, [PROSE.encode()])
    library = hf.Tokenizer.from_str(tokenizer.to_json())
    assert library.encode(PROSE).ids == tokenizer.encode(PROSE.encode()).tolist()
    assert library.decode(library.encode(PROSE).ids) == PROSE
    with pytest.raises(Exception, match="UNK"):
        library.encode("ß")


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_saved_and_loaded(kind, tmp_path):
    tokenizer = train_tokenizer(kind, 283, [PROSE.encode()])
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.kind == kind and loaded.vocab_size == tokenizer.vocab_size
    assert loaded.fingerprint == tokenizer.fingerprint
    assert np.array_equal(loaded.encode(PROSE.encode()), tokenizer.encode(PROSE.encode()))
    assert np.array_equal(loaded.token_bytes, tokenizer.token_bytes)
    assert loaded.token_bytes.dtype == np.int64


@pytest.mark.parametrize(("size", "dtype"), [(256, np.uint8), (257, np.uint16), (65537, np.uint32)])
def test_dtype_is_the_smallest_that_holds_every_id(size, dtype):
    letters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x20000)]))[:size]
    tokenizer = train_tokenizer("char", 0, [letters.encode()])
    assert tokenizer.vocab_size == size and tokenizer.dtype == dtype
    assert_exact(tokenizer, letters.encode())


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_text_that_is_not_utf8(kind):
    chunks = ["é".encode() * 5, b"ab\xffcd"]
    with pytest.raises(UserError, match=r"0xff at offset 12 .*--tokenizer byte"):
        train_tokenizer(kind, 300, chunks)
    tokenizer = train_tokenizer(kind, 300, [b"abcd"])
    with pytest.raises(UserError, match="offset 3 "):
        tokenizer.encode(b"abc\xe9")
    with pytest.raises(UserError, match="offset 1,002 "):
        list(tokenizer.encode_stream([b"ab", b"\x80"], start=1000))


def test_unknown_character_is_named_with_its_place():
    tokenizer = train_tokenizer("char", 0, ["aé".encode()])
    with pytest.raises(UserError, match=r"'z' \(U\+007A\) at byte 5 .*--tokenizer"):
        tokenizer.encode("éaézé".encode())


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
@pytest.mark.parametrize("bad", [-1, 100_000])
def test_id_outside_the_vocabulary(kind, bad):
    tokenizer = train_tokenizer(kind, 300, [PROSE.encode()])
    with pytest.raises(UserError, match=f"token {bad}: .* 0 to {tokenizer.vocab_size - 1}"):
        tokenizer.decode([1, bad])


def test_what_cannot_be_trained():
    with pytest.raises(UserError, match=r"'bytes': did you mean 'byte'\? .*byte, char, bpe"):
        train_tokenizer("bytes", 256, [])
    with pytest.raises(UserError, match=r"256 tokens .*257 or more"):
        train_tokenizer("bpe", 256, [b"text"])
    with pytest.raises(UserError, match="needs text"):
        train_tokenizer("char", 0, [])


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_tokenizer(tmp_path)
    for content in ("{", "[]", "{}", '{"model": {"type": "BPE"}}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    with pytest.raises(UserError, match="'Unigram', which sparse_tx does not make"):
        load_tokenizer(tmp_path)
