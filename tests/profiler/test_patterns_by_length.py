"""Patterns and lengths as they are written on the command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_tx.errors import UserError
from sparse_tx.patterns import parse_pattern
from sparse_tx.patterns.algebra import LARGEST
from sparse_tx.profiler.patterns_by_length import (
    at_length,
    follows_length,
    parse_lengths,
    parse_patterns,
)
from tests.helpers import HEADS


@pytest.mark.parametrize(
    "label, T, expected",
    [
        ("local:sqrt,strided:sqrt", 65_536, "local:256,strided:256"),
        ("local:sqrt*3,strided:sqrt", 1000, "local:32*3,strided:32"),
        ("local:sqrt/strided:sqrt+local:7", 90, "local:9/strided:9+local:7"),
        ("block:sqrt", 91, "block:10"),  # 9.5^2 is 90.25
        ("local: sqrt", 64, "local:8"),
        ("local:sqrt", 1, "local:1"),
        ("local:sqrt", LARGEST, "local:46341"),
        ("fixed:sqrt:8", 4096, "fixed:64:8"),
        ("fixed:sqrt:12", 1000, "fixed:36:12"),  # 31.6 is nearer to 36 than to 24
        ("fixed:sqrt:32", 100, "fixed:32:32"),
        ("summary:sqrt:4@1+block:sqrt", 900, "summary:32:4@1+block:30"),
        ("summary:128:sqrt", 400, "summary:128:20"),
        ("fixed:sqrt:sqrt", 400, "fixed:20:20"),
    ],
)
def test_sizes_that_follow_the_length(label, T, expected):
    assert at_length(label, T) == expected
    assert follows_length(label)


@pytest.mark.parametrize("label", [*HEADS, "local:128*3, strided:128", " dense "])
def test_other_text_stays(label):
    assert at_length(label, 77) == label
    assert not follows_length(label)


@given(T=st.integers(1, LARGEST), columns=st.integers(1, 300))
def test_the_root_is_the_nearest_whole_number(T, columns):
    root = parse_pattern(at_length("local:sqrt", T)).at(0, 0, 1).window
    assert (2 * root + 1) ** 2 > 4 * T
    assert (2 * root - 1) ** 2 < 4 * T
    assert root >= 1
    fixed = parse_pattern(at_length(f"fixed:sqrt:{columns}", T)).at(0, 0, 1)
    assert fixed.columns == columns
    assert fixed.length % columns == 0
    assert abs(fixed.length - root) <= max(columns / 2, columns - root)


@pytest.mark.parametrize(
    "label, message",
    [
        ("local:root", "'root' in 'local:root'"),
        ("dense:sqrt", "pattern 'dense:sqrt' at length 100: 'dense:10'"),
        ("loca:sqrt", "unknown word 'loca'"),
        ("local:sqrt*sqrt", "'sqrt' in 'local:10*sqrt'"),
        ("fixed:sqrt:8@sqrt", "'sqrt'"),
        ("fixed:sqrt:0", "columns"),
        ("fixed:sqrt", "should read"),
        ("summary:8:sqrt", "at length 100: a 'summary' pattern with 10 columns"),
        ("sqrt", "unknown word 'sqrt'"),
        ("", "write one such as 'local:sqrt"),
        (None, "the pattern is None"),
    ],
)
def test_bad_patterns(label, message):
    with pytest.raises(UserError) as caught:
        at_length(label, 100)
    assert message in str(caught.value)


@pytest.mark.parametrize("T", [0, -4, LARGEST + 1, 2.0, True])
def test_lengths_that_are_none(T):
    with pytest.raises(UserError, match="the length is"):
        at_length("local:sqrt", T)


def test_lists_of_patterns():
    text = " dense;local:sqrt,strided:sqrt ;; local:128, strided:128;local:128,strided:128;"
    assert parse_patterns(text) == ("dense", "local:sqrt,strided:sqrt", "local:128, strided:128")
    assert parse_patterns("summary:24:sqrt", lengths=iter([4, 400])) == ("summary:24:sqrt",)


@pytest.mark.parametrize(
    "text, lengths, message",
    [
        ("", (), "write one or more separated by ';'"),
        (" ; ;", (), "write one or more separated by ';'"),
        ("dense;strode:3", (), "did you mean 'strided'"),
        ("dense;summary:24:sqrt", [4, 4096], "at length 4096"),
    ],
)
def test_bad_lists_of_patterns(text, lengths, message):
    with pytest.raises(UserError) as caught:
        parse_patterns(text, lengths=lengths)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text, lengths",
    [
        ("1024", (1024,)),
        ("4096, 1024,64k,1M,1024", (1024, 4096, 65_536, 1_048_576)),
        ("3m,2K", (2048, 3 * 2**20)),
        ("1024..1048576", tuple(2**n for n in range(10, 21))),
        ("1k..1M*4", tuple(4**n for n in range(5, 11))),
        ("3..10,7", (3, 6, 7)),
        ("5..5", (5,)),
        ("10 .. 1000 * 10", (10, 100, 1000)),
        ("2048M", (LARGEST,)),
    ],
)
def test_lists_of_lengths(text, lengths):
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the lengths are ''; write some in tokens"),
        (",,", "write some in tokens"),
        ("0", "'0' in lengths '0' is 0 tokens"),
        ("1024,-5", "'-5' in lengths '1024,-5' is no whole number"),
        ("1.5k", "no whole number of tokens"),
        ("64kB", "no whole number of tokens"),
        ("many", "no whole number of tokens"),
        ("٣", "no whole number of tokens"),
        ("2049M", "a length is 1 to 2,147,483,648"),
        ("2147483649", "a length is 1 to 2,147,483,648"),
        ("9..3", "ends before it begins"),
        ("1..", "'' in lengths"),
        ("..8", "'' in lengths"),
        ("1..8*1", "the factor must be 2 or more"),
        ("1..8*x", "'x' is no factor"),
        ("1..8*", "'' is no factor"),
        ("1..8*-2", "'-2' is no factor"),
    ],
)
def test_bad_lists_of_lengths(text, message):
    with pytest.raises(UserError) as caught:
        parse_lengths(text)
    assert message in str(caught.value)


@given(start=st.integers(1, 10_000), times=st.integers(2, 9), n=st.integers(0, 5))
def test_ranges_are_powers(start, times, n):
    stop = start * times**n
    assert len(parse_lengths(f"{start}..{stop}*{times}")) == n + 1
