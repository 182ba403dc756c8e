"""The tables and the summary of a profile."""

import re
from dataclasses import replace

import pytest
from rich.console import Console

from sparse_tx.profiler.records import Profile, Row
from sparse_tx.profiler.report import WIDTH_OF_FILES, facts, sentences, tables
from sparse_tx.profiler.report.findings import (
    all_findings,
    cache_sheet,
    fits_sheet,
    reaches_sheet,
    totals_sheet,
)
from sparse_tx.profiler.report.sheets import MOST_PARTS, folded, main_sheet, parts_sheet
from tests.profiler.examples import (
    NASTY_LABEL,
    nasty_profile,
    one_row_profile,
    prediction,
    realistic_profile,
    setting,
)


def printed(profile, width: int) -> str:
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as captured:
        for block in tables(profile):
            console.print(block)
    return captured.get()


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


PROFILES = {
    "realistic": realistic_profile(),
    "several works": realistic_profile(
        works=("attention", "train", "decode"), lengths=(1024, 4096), recomputes=(False, True)
    ),
    "one row": one_row_profile(),
    "nasty": nasty_profile(),
}


@pytest.mark.parametrize("width", [60, 80, WIDTH_OF_FILES])
@pytest.mark.parametrize("name", PROFILES)
def test_no_figure_is_cut_off(name, width):
    profile = PROFILES[name]
    text = printed(profile, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    works = facts.works(profile)
    sheets = [main_sheet(profile, [work]) for work in works]
    sheets += [parts_sheet(profile, "train", kind) for kind in ("bytes", "flops")]
    for sheet in [*sheets, *all_findings(profile)]:
        for row in sheet.rows:
            for cell, column in zip(row, sheet.columns, strict=True):
                # What is not text stands on one line; names are folded to pieces.
                assert column.is_text or cell.text in text
        for note in sheet.notes:
            assert squeezed(note) in squeezed(text)


def test_rows_say_predicted_measured_and_difference():
    profile = realistic_profile()
    row = profile.rows[0]
    sheet = main_sheet(profile, ["train"])
    cells = dict(zip([c.full_name for c in sheet.columns], sheet.rows[0], strict=True))
    assert cells["length"].value == 1024 and cells["pairs of dense"].text == "100 %"
    told, found = row.prediction, row.measurement
    assert cells["memory predicted"].value == told.peak_bytes
    assert cells["memory measured"].value == found.peak_bytes
    assert cells["memory error"].value == pytest.approx(told.peak_bytes / found.peak_bytes - 1)
    middle = sorted(found.seconds)[2]
    assert cells["time measured"].value == middle
    assert cells["tokens per s"].value == pytest.approx(1024 / middle)
    rate = sum(told.useful_flops.values()) / middle
    assert cells["FLOP/s of GEMM"].value == pytest.approx(rate / 1.1e11)


def test_failures_and_what_was_not_measured_are_told():
    sheet = main_sheet(realistic_profile(), ["train"])
    texts = [[cell.text for cell in row] for row in sheet.rows]
    failed = next(row for row in texts if "failed [1]" in row)
    assert failed.count("failed [1]") == 2 and any(text.startswith("~") for text in failed)
    assert sheet.notes == (
        "[1] dense at 262,144: out of memory at 22.9 GB: the process was killed",
        "~ follows from the predicted time, as there is no measured one",
        "not measured (would take about 3 h): fixed:128:32 at 262,144",
    )


def test_recompute_is_named_where_it_is_on():
    def columns(profile):
        return [column.name for column in main_sheet(profile, ["train"]).columns]

    assert "recompute" not in columns(realistic_profile(lengths=(1024,)))
    assert "recompute" in columns(realistic_profile(lengths=(1024,), recomputes=(True,)))
    assert "recompute" in columns(realistic_profile(lengths=(1024,), recomputes=(False, True)))


def test_settings_that_differ_otherwise_are_told_apart():
    rows = []
    for batch in (1, 4):
        asked = setting("local:64", 1024, batch_size=batch)
        rows.append(Row(setting=asked, prediction=prediction(asked)))
    profile = Profile(title="batches", provenance={}, rows=tuple(rows))
    assert [series.name for series in facts.all_series(profile)] == [
        "local:64 (batch 1)",
        "local:64 (batch 4)",
    ]
    assert "batch" in [column.name for column in main_sheet(profile, ["train"]).columns]


def test_columns_without_a_figure_are_left_out():
    names = [column.full_name for column in main_sheet(one_row_profile(), ["train"]).columns]
    assert "memory predicted" in names
    assert "memory measured" not in names and "time predicted" not in names


def test_small_parts_are_added_up():
    wholes = [{f"part{n}": 2**n for n in range(12)}, {"part11": 5, "rare": 0}]
    parts = folded(wholes)
    assert [sum(whole.values()) for whole in parts] == [sum(w.values()) for w in wholes]
    assert len(parts[0]) == MOST_PARTS and next(iter(parts[0])) == "part11"
    assert list(parts[0])[-1] == "other" and "rare" not in parts[1]


def test_summary_speaks_of_the_longest_sequence():
    said = sentences(realistic_profile())
    assert re.fullmatch(
        r"A training step of 262,144 tokens with local:128,strided:128 takes \d+ s and [\d.]+ GB"
        r" \(measured\), reading 0\.44 % of dense attention's pairs\. Dense attention would take"
        r" about \d+ min and [\d.]+ GB \(predicted\), \d+ times as long\.",
        said[0],
    )
    text = " ".join(said)
    assert "a training step takes less time than with dense attention from 2,048 tokens on." in text
    assert "24 GB of memory have room for a training step of 524,288 tokens" in text
    assert "1 of 15 settings failed" in text and "Predicted memory is off by" in text


def test_summary_of_little():
    assert (
        sentences(one_row_profile())[-1]
        == "None of these settings was measured: all figures are predictions."
    )
    empty = Profile(title="empty", provenance={}, rows=())
    assert len(sentences(empty)) == 1
    printed(empty, 80)
    assert NASTY_LABEL in sentences(nasty_profile())[0]


def test_whole_training_run():
    sheet = totals_sheet(realistic_profile())
    names = [column.full_name for column in sheet.columns]
    row = dict(zip(names, sheet.rows[0], strict=True))
    steps = -(-1_000_000_000 // 262_144)
    assert row["steps"].value == steps
    longest = realistic_profile().rows[4]
    assert row["time, predicted"].value == pytest.approx(longest.prediction.seconds * steps)
    assert not totals_sheet(replace(realistic_profile(), training_tokens=None)).rows


def test_an_infinite_interval_is_not_a_figure():
    profile = realistic_profile(lengths=(1024,))
    law = replace(profile.laws[0], low=float("-inf"), high=float("inf"))
    text = printed(replace(profile, laws=(law,)), 160)
    assert "inf" not in text.split("How cost grows")[1].split("Below the length")[0].lower()


def test_a_run_beyond_the_memory_confirms_nothing():
    profile = realistic_profile()
    fit = profile.fits[0]
    beyond = replace(fit, confirmation=replace(fit.confirmation, peak_bytes=24_000_000_000))
    profile = replace(profile, fits=(beyond,))
    text = " ".join(sentences(profile))
    assert "a run of it took 24.3 GB" in text and "confirmed" not in text
    assert fits_sheet(profile).rows[0][-1].text.endswith("24.3 GB (more than the memory)")


def test_what_a_cache_takes_stores_and_reads():
    profile = realistic_profile(works=("decode",), lengths=(1024, 4096))
    sheet = cache_sheet(profile)
    assert [column.name for column in sheet.columns[-3:]] == ["taken", "stored", "read by a step"]
    dense, strided, _ = ([cell.value for cell in row[-3:]] for row in sheet.rows)
    per_key = 4 * 2 * 4 * 128  # four layers, keys and values
    assert dense == [4096 * per_key] * 3
    assert strided[0] == (128 + 4096) * per_key / 2
    assert strided[1:] == [(127 + 4096) * per_key / 2, (128 + 32) * per_key / 2]
    assert "no cache" not in sheet.explanation


def test_a_reach_that_is_not_known():
    profile = realistic_profile()
    how = "fused dense was not measured: out of memory"
    unknown = replace(profile.reaches[0], length=None, budget=None, measured=False, how=how)
    counted = replace(profile.reaches[0], quantity="useful_flops", measured=False)
    first, second = reaches_sheet(replace(profile, reaches=(unknown, counted))).rows
    assert [cell.text for cell in first[-5:]] == ["-", "-", "-", "-", how]
    assert second[-2].text == "counted"


def test_a_step_is_of_one_batch_whatever_accumulates():
    """As it is measured: tokens, FLOPs and seconds are of the same step."""
    asked = setting("local:128", 4096, batch_size=3, accumulation=8)
    row = Row(setting=asked, prediction=prediction(asked))
    assert facts.tokens_of_work(row) == 3 * 4096
    profile = Profile(title="", provenance={}, rows=(row,), training_tokens=3 * 4096 * 10)
    steps = next(cell for cell in totals_sheet(profile).rows[0] if cell.value == 10)
    assert steps.text == "10"
    assert sentences(profile)[0].startswith("A training step of 3 x 4,096 tokens")


def test_memory_in_bf16_is_not_predicted():
    profiles = []
    for precision in ("fp32", "bf16"):
        asked = setting("local:128", 4096, precision=precision)
        row = Row(setting=asked, prediction=prediction(asked))
        profiles.append(Profile(title="", provenance={}, rows=(row,)))
    told = ["Memory is predicted for float32" in " ".join(sentences(p)) for p in profiles]
    assert told == [False, True]
