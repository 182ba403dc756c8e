"""``sparse-tx profile --maps``, as users call it."""

import csv
import io
import json

import pytest

from sparse_tx.accounting.maps import MapShape, non_local, position_attention
from sparse_tx.commands.main import main
from sparse_tx.errors import UserError
from sparse_tx.profiler.maps import parse_maps, profile_maps
from sparse_tx.profiler.report.map_files import write_map_report

MAPS = ["profile", "--maps"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["97x97"], "'97x97' in maps '97x97' is no map"),
        (["97x0x512"], "has a size of 0"),
        (["97x97x100"], "100 channels, which SE and CBAM would divide by 16"),
        ([" "], "--maps is ' '"),
        (["5x7x16", "--patterns", " "], "--patterns is ' '"),
        (["5x7x16", "--patterns", "rows:8"], "have 7; write 7 for 8"),
        (["5x7x16", "--patterns", "rosw:W"], "did you mean 'rows'"),
        (["5x7x16", "--patterns", "tiles:W:9"], "edge 9"),
        (["5x7x16", "--reduction", "0"], "reduction is 0"),
        (["5x7x16", "--out", " "], "--out is ' '"),
        (["5x7x16", "--out", "/dev/null/report"], "is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_sentence(capsys, flags, words):
    assert main([*MAPS, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert words in captured.err


def test_flags_of_a_profile_of_lengths_do_not_go_with_maps(capsys):
    with pytest.raises(SystemExit) as ended:
        main([*MAPS, "5x7x16", "--preset", "tiny"])
    assert ended.value.code == 2
    assert "unknown flag --preset" in capsys.readouterr().err


def test_help_of_both(capsys):
    for flags, words in ((["--help"], "--maps"), (["--help", "--maps", "5x7x16"], "--reduction")):
        with pytest.raises(SystemExit) as ended:
            main(["profile", *flags])
        assert ended.value.code == 0
        assert words in capsys.readouterr().out


def test_figures(capsys):
    assert main([*MAPS, "97x97x512"]) == 0
    printed = capsys.readouterr().out
    for words in ("97x97x512", "3x3 convolution", "108 GFLOP", "rows:W,columns:W", "4,608"):
        assert words in printed


def test_patterns_and_reduction_are_as_asked(capsys):
    flags = ["--patterns", "tiles:W:3,lattice:W:3", "--reduction", "4", "--maps=6x9x24"]
    assert main(["profile", *flags]) == 0
    printed = capsys.readouterr().out
    assert "position attention, tiles:W:3,lattice:W:3" in printed
    assert f"{2 * 24 * 6 + 24 + 6:,}" in printed and "crisscross" not in printed


def test_a_report_beside_the_figures(capsys, tmp_path):
    folder = tmp_path / "new" / "costs"
    assert main([*MAPS, "97x97x512,5x7x16", "--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    names = {f"maps.{ending}" for ending in ("json", "csv", "png", "html")}
    assert {path.name for path in folder.iterdir()} == names
    assert all(str(folder / name) in printed for name in names)

    found = json.loads((folder / "maps.json").read_text())
    assert found["format"] == "sparse_tx maps 1"
    rows = {(row["height"], row["module"]): row for row in found["rows"]}
    shape = MapShape((97, 97), 512)
    assert rows[97, "non-local"]["macs"] == non_local(shape).macs
    sparse = rows[97, "position attention, rows:W,columns:W"]
    assert sparse["attention_map"] == 2 * 97**3
    assert sparse["flops"] == position_attention(shape, pattern="rows:97,columns:97").flops
    assert len(found["rows"]) == 20 and len(found["curves"]) > 100
    assert all(sentence in " ".join(printed.split()) for sentence in found["sentences"])

    lines = list(csv.DictReader(io.StringIO((folder / "maps.csv").read_text())))
    assert [int(line["macs"]) for line in lines] == [row["macs"] for row in found["rows"]]
    assert (folder / "maps.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_has_nothing_but_itself(tmp_path):
    pattern = "dense;rows:W,columns:W"
    profile = profile_maps(
        parse_maps("5x7x16"), tuple(pattern.split(";")), provenance={"command": "<b>&"}
    )
    html = write_map_report(profile, tmp_path)["html"].read_text()
    start = html.index('<script type="application/json"')
    assert "<b>&" not in html[:start] and "&lt;b&gt;&amp;" in html[:start]
    for outside in ('src="http', 'href="http', "@import", "url("):
        assert outside not in html[:start]
    assert "default-src 'none'" in html
    for words in ("Attention for feature maps of 5x7x16", "All modules", "maps.csv", "dashed line"):
        assert words in html


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    profile = profile_maps(parse_maps("5x7x16"), ("dense",))
    with pytest.raises(UserError, match="cannot write the report"):
        write_map_report(profile, tmp_path / "file")
