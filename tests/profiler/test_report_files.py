"""The files of a report: JSON without loss, CSV, PNG and page, whole or absent."""

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from sparse_tx.errors import UserError
from sparse_tx.profiler.records import Profile
from sparse_tx.profiler.report import (
    files,
    profile_from_json,
    profile_to_csv,
    profile_to_json,
    write_report,
)
from tests.profiler.examples import (
    NASTY_LABEL,
    PROVENANCE,
    nasty_profile,
    one_row_profile,
    realistic_profile,
)


@pytest.mark.parametrize(
    "profile",
    [
        realistic_profile(works=("attention", "train"), recomputes=(False, True)),
        one_row_profile(),
        nasty_profile(),
        Profile(title="empty", provenance={}, rows=()),
    ],
    ids=["realistic", "one row", "nasty", "empty"],
)
def test_json_loses_nothing(profile):
    assert profile_from_json(profile_to_json(profile)) == profile


def test_json_is_strict_and_holds_infinities():
    profile = realistic_profile(lengths=(1024,))
    law = replace(profile.laws[0], low=float("-inf"), high=float("inf"), exponent=1 / 3)
    profile = replace(profile, laws=(law,))
    text = profile_to_json(profile)

    def refuse(word):
        raise AssertionError(word)

    json.loads(text, parse_constant=refuse)
    assert profile_from_json(text) == profile


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"format": "else"}'])
def test_json_of_something_else_is_refused(text):
    with pytest.raises(UserError, match="JSON"):
        profile_from_json(text)


def test_edited_json_is_refused():
    text = profile_to_json(one_row_profile())
    with pytest.raises(UserError, match="cannot be read"):
        profile_from_json(text.replace('"title"', '"titel"'))


def test_csv_has_a_line_for_each_row():
    profile = realistic_profile()
    lines = list(csv.DictReader(io.StringIO(profile_to_csv(profile))))
    assert len(lines) == len(profile.rows)
    first, row = lines[0], profile.rows[0]
    assert list(first)[:4] == ["work", "label", "pattern", "seq_len"]
    assert int(first["seq_len"]) == 1024 and first["recompute"] == "False"
    assert int(first["predicted_peak_bytes"]) == row.prediction.peak_bytes
    assert int(first["measured_peak_bytes"]) == row.measurement.peak_bytes
    assert float(first["measured_seconds"]) == sorted(row.measurement.seconds)[2]
    assert float(first["measured_seconds_max"]) == max(row.measurement.seconds)
    assert int(first["useful_flops"]) == sum(row.prediction.useful_flops.values())
    assert int(first["flops.scores"]) == row.prediction.useful_flops["scores"]
    assert int(first["peak.weights"]) == row.prediction.peak_parts["weights"]
    assert float(first["time.optimiser"]) == row.measurement.parts_s["optimiser"]
    failed = next(line for line in lines if line["failure"])
    assert failed["measured_seconds"] == failed["measured_peak_bytes"] == ""
    assert lines[-1]["not_measured"] == "would take about 3 h" and lines[-1]["engine"] == ""
    assert int(first["cache_allocated_bytes"]) == row.prediction.cache_allocated_bytes


def test_csv_names_the_decoder():
    profile = realistic_profile(works=("decode",), lengths=(1024,))
    row = profile.rows[0]
    measured = replace(row, measurement=replace(row.measurement, decoder="NativeDecoder"))
    text = profile_to_csv(replace(profile, rows=(measured, *profile.rows[1:])))
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [line["decoder"] for line in lines[:2]] == ["NativeDecoder", ""]
    assert lines[0]["engine"] == "cpu"


def test_csv_of_awkward_names():
    lines = list(csv.DictReader(io.StringIO(profile_to_csv(nasty_profile()))))
    assert lines[0]["label"] == NASTY_LABEL


def test_report_is_written_whole(tmp_path):
    profile = nasty_profile()
    folder = tmp_path / "new" / "report"
    paths = write_report(profile, folder)
    assert {kind: path.name for kind, path in paths.items()} == {
        kind: f"profile.{kind}" for kind in ("json", "csv", "png", "html")
    }
    assert sorted(os.listdir(folder)) == sorted(path.name for path in paths.values())
    assert profile_from_json(paths["json"].read_text()) == profile
    assert paths["png"].read_bytes().startswith(b"\x89PNG")


def test_page_has_nothing_but_itself(tmp_path):
    html = write_report(nasty_profile(), tmp_path)["html"].read_text()
    start = html.index('<script type="application/json"')
    assert "<script>window.hacked" not in html and "<img src=x" not in html
    assert "<i>no time" not in html and "<u>title" not in html and "{{ 7 * 7 }}" in html
    assert html.count("<script") - html.count('"<script') >= 3
    for outside in ('src="http', "src='http", 'href="http', "@import", "url("):
        assert outside not in html[:start], outside
    assert "default-src 'none'" in html


def test_pages_of_little(tmp_path):
    for name, profile in {
        "one": one_row_profile(),
        "empty": Profile(title="empty", provenance=PROVENANCE, rows=()),
    }.items():
        assert write_report(profile, tmp_path / name)["html"].stat().st_size > 1e6


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the report") as caught:
        write_report(one_row_profile(), tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_data_are_written_before_anything_is_drawn(tmp_path, monkeypatch):
    def fail(profile):
        raise RuntimeError("drawing failed")

    monkeypatch.setitem(files._CONTENTS, "profile.png", fail)
    with pytest.raises(RuntimeError):
        write_report(one_row_profile(), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["profile.csv", "profile.json"]


def test_plotting_libraries_wait_until_they_are_needed():
    code = (
        "import sys; import sparse_tx.profiler.report;"
        "print([m for m in ('plotly', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    # jinja2 may come with torch; the two that take a second must not.
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "plotly" not in found.stdout and "matplotlib" not in found.stdout
