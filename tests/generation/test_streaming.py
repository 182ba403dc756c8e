from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sparse_tx.generation import StopStream, Utf8Stream
from tests.helpers import cut_before_first_stop

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


few_bytes = st.text("ab\0", max_size=14).map(str.encode)
stop_strings = st.lists(st.text("ab\0", min_size=1, max_size=5).map(str.encode), max_size=4)


@given(few_bytes, stop_strings, st.lists(st.integers(0, 14), max_size=6))
def test_stop_strings_end_any_cut_of_the_bytes_in_one_place(data, stops, cuts):
    stream = StopStream(stops)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    text = b"".join(stream.feed(data[a:b]) for a, b in pairwise(edges))
    stopped = stream.stopped
    assert (text + stream.finish(), stopped) == cut_before_first_stop(data, stops)


@given(few_bytes, stop_strings)
def test_no_byte_is_held_back_longer_than_needed(data, stops):
    stream, passed = StopStream(stops), b""
    for n in range(len(data)):
        passed += stream.feed(data[n : n + 1])
        if stream.stopped:
            return
        rest = data[len(passed) : n + 1]
        beginnings = {stop[:k] for stop in stops for k in range(1, len(stop))}
        ends = [data[at : n + 1] for at in range(n + 1)]
        assert rest == max((end for end in ends if end in beginnings), key=len, default=b"")


def test_the_stop_string_that_is_complete_first_counts():
    assert StopStream([b"abcd", b"bc"]).feed(b"xabcd") == b"xa"
    assert StopStream([b"abc", b"bc", b"c"]).feed(b"xabcd") == b"x"


def test_what_comes_after_a_stop_string_is_lost():
    stream = StopStream([b"\n"])
    assert [stream.feed(part) for part in (b"a", b"b\nc", b"d\ne")] == [b"a", b"b", b""]
    assert (stream.stopped, stream.finish()) == (True, b"")


def test_without_stop_strings_bytes_pass_at_once():
    stream = StopStream()
    assert stream.feed(b"ab") == b"ab"
    assert (stream.stopped, stream.finish()) == (False, b"")
