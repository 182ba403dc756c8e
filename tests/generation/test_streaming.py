from hypothesis import given
from hypothesis import strategies as st

from sparse_tx.generation import Utf8Stream

TEXT = "añ€🜂é, bytes: ".encode() + b"\xff\xc3(\xe2\x82\xf0\x9f" + "ß".encode() + b"\xf0\x9f\x9c"


def test_any_cut_gives_the_same_text():
    whole = TEXT.decode(errors="replace")
    for first in range(len(TEXT) + 1):
        for second in range(first, len(TEXT) + 1):
            stream = Utf8Stream()
            parts = TEXT[:first], TEXT[first:second], TEXT[second:]
            assert "".join(map(stream.feed, parts)) + stream.finish() == whole


@given(st.binary(max_size=40))
def test_byte_by_byte_equals_at_once(data):
    stream = Utf8Stream()
    text = "".join(stream.feed(bytes([byte])) for byte in data)
    assert text + stream.finish() == data.decode(errors="replace")


def test_a_character_comes_out_once_it_is_whole():
    stream = Utf8Stream()
    assert [stream.feed(bytes([byte])) for byte in "€a".encode()] == ["", "", "€", "a"]
    assert stream.finish() == ""


def test_an_incomplete_end_is_one_replacement_and_is_not_carried_over():
    stream = Utf8Stream()
    stream.feed("€".encode()[:2])
    assert stream.finish() == "�"
    assert stream.feed(b"a") + stream.finish() == "a"
