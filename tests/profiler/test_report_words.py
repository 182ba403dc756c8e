"""Units and names in reports."""

import pytest

from sparse_tx.patterns import parse_pattern
from sparse_tx.profiler.report.scale import chosen_ticks, length_levels, quantity_levels
from sparse_tx.profiler.report.words import (
    bytes_text,
    count_text,
    difference_text,
    flops_text,
    joined,
    rate_text,
    seconds_text,
    share_text,
    what_it_reads,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (2.5e-6, "2.5 µs"),
        (0.0034, "3.4 ms"),
        (0.34, "0.34 s"),
        (12.3, "12 s"),
        (203, "3.4 min"),
        (48 * 60, "48 min"),
        (2.1 * 3600, "2.1 h"),
        (5 * 86_400, "5 days"),
        (150 * 86_400, "150 days"),
        (3650 * 86_400, "10 years"),
        (float("nan"), "-"),
    ],
)
def test_durations(seconds, text):
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (12_345, "12.3 kB"),
        (999_400, "999 kB"),
        (999_500, "1 MB"),
        (2**30, "1.07 GB"),
        (1_234_567_890, "1.23 GB"),
        (None, "-"),
    ],
)
def test_bytes_count_in_thousands(n, text):
    assert bytes_text(n) == text


def test_other_units():
    assert flops_text(1.5e12) == "1.5 TFLOP"
    assert count_text(1_048_576) == "1,048,576"
    assert rate_text(12_143) == "12,100" and rate_text(0.2468) == "0.247"
    assert share_text(0.03124) == "3.12 %" and share_text(1) == "100 %"
    assert difference_text(0.0316) == "+3.2 %" and difference_text(-0.5) == "-50.0 %"
    assert difference_text(2.5) == "+250 %" and difference_text(None) == "-"
    assert joined(["a", "b", "c"]) == "a, b and c" and joined(["a"]) == "a"


@pytest.mark.parametrize(
    ("notation", "said"),
    [
        ("dense", "Every layer reads all earlier positions."),
        ("local:1", "Every layer reads its own position alone."),
        ("strided:2", "Every layer reads every 2nd position, counted back from its own."),
        (
            "local:128,strided:113",
            "Layers take turns: one reads the last 128 positions; the next every 113th position,"
            " counted back from its own.",
        ),
        (
            "local:8*3,dense",
            "Layers read either the last 8 positions; or all earlier positions.",
        ),
        (
            "fixed:64:8",
            "Every layer reads what precedes it in its own block of 64 and its head's own 8 columns"
            " of every block of 64.",
        ),
        (
            "local:8/summary:64:8@0",
            "Every layer reads by groups of heads, the last 8 positions or the same 8 columns of"
            " every block of 64.",
        ),
        ("local:8+strided:8", "Every layer reads the last 8 positions and every 8th position,"),
    ],
)
def test_what_a_pattern_reads(notation, said):
    assert what_it_reads(parse_pattern(notation), n_head=4).startswith(said)


def test_ticks_are_round_and_few():
    texts = [text for _, text in chosen_ticks(quantity_levels("bytes", [3e6, 2e10]), 3e6, 2e10, 9)]
    assert texts == ["10 MB", "100 MB", "1 GB", "10 GB"]
    texts = [text for _, text in chosen_ticks(quantity_levels("bytes", [3e6, 4e7]), 3e6, 4e7, 9)]
    assert texts == ["5 MB", "10 MB", "20 MB"]
    texts = [text for _, text in chosen_ticks(quantity_levels("bytes", [3e6, 6e6]), 3e6, 6e6, 9)]
    assert texts == ["3 MB", "4 MB", "5 MB", "6 MB"]
    levels = quantity_levels("seconds", [0.5, 1e6])
    texts = [text for _, text in chosen_ticks(levels, 0.5, 1e6, 9)]
    assert texts == ["1 s", "10 s", "1 min", "10 min", "1 h", "10 h", "1 day", "10 days"]
    assert quantity_levels("seconds", []) == []


def test_ticks_are_thinned_from_the_longest():
    lengths = [1024, 4096, 16_384, 65_536, 262_144]
    ticks = chosen_ticks(length_levels(lengths), 1000, 3e5, most=3)
    assert [text for _, text in ticks] == ["1,024", "16,384", "262,144"]
