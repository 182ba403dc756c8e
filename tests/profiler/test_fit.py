"""Amounts of memory as they are written, and what fits into them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_tx.errors import UserError
from sparse_tx.profiler.fit import largest_batch, largest_length, parse_memory


@pytest.mark.parametrize(
    "text, size",
    [
        ("24GB", 24_000_000_000),
        ("24gb", 24_000_000_000),
        ("24 GiB", 24 * 2**30),
        (" 1.5kB ", 1500),
        ("0.1KiB", 102),
        ("7B", 7),
        ("512mib", 512 * 2**20),
        ("3MB", 3_000_000),
        ("2TB", 2 * 10**12),
        ("2TiB", 2 * 2**40),
        ("123456789012345.678kB", 123456789012345678),
    ],
)
def test_amounts(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text, message",
    [
        ("24", "'24' without a unit; write '24GB'"),
        ("24.5", "write '24.5GB'"),
        ("", "for example '24GB'"),
        ("GB", "for example '24GB'"),
        ("-3GB", "'-3GB'; write a number and its unit"),
        ("nan GB", "'nan GB'"),
        ("infGB", "'infGB'"),
        ("1e9GB", "write a number and its unit"),
        ("1,5GB", "write a number and its unit"),
        ("24GBs", "no unit 'GBs': did you mean 'gb'"),
        ("24quarts", "the units are B, kB"),
        ("0GB", "it must be 1 byte or more"),
        ("0.4B", "it must be 1 byte or more"),
        (24, "memory is 24; write"),
        ("٣GB", "write a number and its unit"),
    ],
)
def test_refused_amounts(text, message):
    with pytest.raises(UserError) as caught:
        parse_memory(text)
    assert message in str(caught.value)


@given(memory=st.integers(0, 10**6), weights=st.integers(0, 10**5), per_token=st.integers(1, 1000))
def test_largest_that_fits(memory, weights, per_token):
    def peak_of(n):
        return weights + per_token * n

    expected = max(0, (memory - weights) // per_token)
    assert largest_length(peak_of, memory) == expected
    assert largest_batch(peak_of, memory) == expected
    assert largest_length(peak_of, memory, most=17) == min(expected, 17)
