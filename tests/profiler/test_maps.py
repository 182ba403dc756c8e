"""The comparison of modules for maps: what is asked, what is counted, and what is said of it."""

import pytest

from sparse_tx.accounting import maps
from sparse_tx.accounting.maps import MapShape
from sparse_tx.errors import UserError
from sparse_tx.profiler.maps import (
    CONVOLUTION,
    MOST_POSITIONS,
    PATTERNS,
    at_width,
    parse_map_patterns,
    parse_maps,
    profile_maps,
)
from sparse_tx.profiler.report.map_plots import map_figure, map_plots
from sparse_tx.profiler.report.map_words import map_sentences, map_sheet
from sparse_tx.profiler.report.palette import LIGHT

CITYSCAPES = MapShape((97, 97), 512)
SMALL = MapShape((5, 7), 16)


def profile(*shapes, patterns=PATTERNS, **settings):
    return profile_maps(shapes, parse_map_patterns(patterns), **settings)


def test_maps_are_read():
    assert parse_maps(" 97x97x512, 5X7x16,97x97x512,") == (CITYSCAPES, SMALL)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the maps are ''"),
        (" , ", "97x97x512"),
        ("97x97", "'97x97' in maps '97x97' is no map"),
        ("97x97x512x2", "is no map"),
        ("97,97,512", "'97' in maps"),
        ("-3x5x8", "is no map"),
        ("3.5x5x8", "is no map"),
        ("axbxc", "height x width x channels"),
        ("0x5x8", "has a size of 0"),
        ("5x0x8", "has a size of 0"),
        ("5x7x0", "has a size of 0"),
        ("9999x9999x8", f"larger than {MOST_POSITIONS:,} positions"),
        ("5x7x99999999", "1,048,576 channels"),
    ],
)
def test_maps_that_are_none(text, words):
    with pytest.raises(UserError, match=words) as caught:
        parse_maps(text)
    assert "\n" not in str(caught.value)


def test_patterns_are_read():
    assert parse_map_patterns("dense; rows:W, columns:W;;dense") == ("dense", "rows:W,columns:W")
    assert at_width("tiles:W:4+rows: W,local:3", 97) == "tiles:97:4+rows:97,local:3"
    with pytest.raises(UserError, match="the patterns are ';'"):
        parse_map_patterns(";")


def test_every_module_on_every_map():
    found = profile(CITYSCAPES, SMALL)
    assert [row.shape for row in found.rows] == [CITYSCAPES] * 10 + [SMALL] * 10
    assert found.modules[0] == CONVOLUTION and len(set(found.modules)) == 10
    for shape in (CITYSCAPES, SMALL):
        expected = {
            CONVOLUTION: maps.convolution(shape),
            "non-local": maps.non_local(shape),
            "non-local, subsampled": maps.non_local(shape, subsample="before"),
            "position attention, dense": maps.position_attention(shape),
            "position attention, rows:W,columns:W": maps.position_attention(
                shape, pattern=f"rows:{shape.width},columns:{shape.width}"
            ),
            "position attention, crisscross:W": maps.position_attention(
                shape, pattern=f"crisscross:{shape.width}"
            ),
            "channel attention": maps.channel_attention(shape),
            "SE": maps.squeeze_excite(shape),
            "CBAM channel gate": maps.channel_gate(shape),
            "CBAM spatial gate": maps.spatial_gate(shape),
        }
        assert {module: found.cost(shape, module) for module in found.modules} == expected


def test_curves_run_over_squares_of_the_same_channels():
    found = profile(MapShape((3, 300_000), 16), MapShape((5, 7), 32), MapShape((7, 5), 16))
    for channels in (16, 32):
        sides = [
            row.shape.sizes
            for row in found.curves
            if row.module == CONVOLUTION and row.shape.channels == channels
        ]
        assert sides == [(2**n, 2**n) for n in range(2, 11)]
    (row,) = (
        row
        for row in found.curves
        if (row.module, str(row.shape)) == ("position attention, crisscross:W", "64x64x32")
    )
    assert row.cost == maps.position_attention(MapShape((64, 64), 32), pattern="crisscross:64")


def test_a_pattern_with_a_width_of_its_own_has_points_where_it_fits():
    found = profile(SMALL, patterns="rows:7;tiles:W:6")
    name = "position attention, rows:7"
    assert found.cost(SMALL, name) == maps.position_attention(SMALL, pattern="rows:7")
    assert [row for row in found.curves if row.module == name] == []
    # Tiles of 6 do not fit on 4 x 4.
    tiles = [row for row in found.curves if row.module == "position attention, tiles:W:6"]
    assert [row.shape.width for row in tiles] == [8, 16, 32, 64, 128, 256]


@pytest.mark.parametrize(
    ("shape", "settings", "words"),
    [
        (MapShape((5, 7), 20), {}, "20 channels.*SE and CBAM.*16.*--reduction"),
        (MapShape((5, 7), 20), {"reduction": 5}, "position attention would divide by 8"),
        (SMALL, {"reduction": 0}, "reduction is 0"),
        (SMALL, {"patterns": "rows:8"}, "rows of 8 positions.*have 7"),
        (SMALL, {"patterns": "rosw:W"}, "did you mean 'rows'"),
        (SMALL, {"patterns": "rows:W/columns:W"}, "2 groups of heads"),
    ],
)
def test_what_cannot_be_counted(shape, settings, words):
    with pytest.raises(UserError, match=words):
        profile(shape, **settings)


def test_what_is_said():
    said = map_sentences(profile(CITYSCAPES))
    text = " ".join(said)
    for words in (
        "position attention, dense costs most, 54.1 GMAC or 2.44 times a 3x3 convolution",
        "SE costs least, 32.8 kMAC or 1/677,448 of it",
        "Along rows:W,columns:W there, 2 steps take as many products as 2.06 % of all pairs of",
        "Along crisscross:W there, 2.05 % of all pairs of positions meet: an attention map",
        "below 4,608 positions, 9 for each channel: on squares up to 67x67; 97x97x512 has 9,409",
        "2.04 times the convolution",
        "more than 98 numbers, positions times channels: 97x97x512 has 4,817,408",
        "1/49,157 of them",
        "is 2 FLOPs",
    ):
        assert words in text
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in said)


def test_what_is_said_of_tiny_maps():
    tiny = MapShape((1, 1), 16)
    text = " ".join(map_sentences(profile(tiny)))
    assert "on squares up to 11x11; 1x1x16 has 1, and there they cost 1/144 of the" in text
    assert "1x1x16 has 16, and there it costs 6.12 times them" in text
    assert (
        "Along rows:W,columns:W there, 2 steps take as many products as 200 % of all pairs of"
        " positions: attention maps held whole take 8 B in place of 4 B." in text
    )
    assert "Along dense" not in text and "Along crisscross" not in text
    # Steps that together take what all pairs do are said, too.
    square = " ".join(map_sentences(profile(MapShape((2, 2), 16), patterns="rows:W,columns:W")))
    assert "as many products as 100 % of all pairs" in square


def test_the_table():
    sheet = map_sheet(profile(CITYSCAPES))
    cells = {row[0].text: [cell.text for cell in row] for row in sheet.rows}
    assert [column.full_name for column in sheet.columns][:4] == [
        "module",
        "parameters",
        "MACs",
        "FLOPs",
    ]
    assert cells["position attention, dense"][3] == "108 GFLOP"
    assert cells["position attention, crisscross:W"][3] == "8.26 GFLOP"
    assert cells[CONVOLUTION][1:] == ["2,359,296", "22.2 GMAC", "44.4 GFLOP", "100 %", "-", "-"]
    assert cells["non-local"][6] == "354 MB"
    several = map_sheet(profile(CITYSCAPES, SMALL))
    assert several.columns[0].name == "map" and several.rows[10][0].text == "5x7x16"


def test_plots_hold_every_figure():
    found = profile(CITYSCAPES, SMALL)
    for channels, shape in ((512, CITYSCAPES), (16, SMALL)):
        plots = {plot.key: plot for plot in map_plots(found, channels)}
        assert list(plots) == [f"macs-{channels}", f"bytes-{channels}"]
        drawn = plots[f"macs-{channels}"].data
        for module in found.modules:
            curve, asked = (t for t in drawn if t.get("meta") == {"series": module})
            assert asked["x"] == [shape.positions]
            assert asked["y"] == [found.cost(shape, module).macs]
            assert len(curve["x"]) == 7 and curve["x"][0] == 16
        assert drawn[-1]["x"] == [9 * channels] * 2
        names = {t["meta"]["series"] for t in plots[f"bytes-{channels}"].data}
        assert names == {
            row.module for row in found.rows if row.shape == shape and row.cost.attention_map
        }


def test_plotly_knows_every_property():
    import json

    from plotly.graph_objects import Figure

    for plot in map_plots(profile(SMALL), 16):
        text = json.dumps({"data": plot.data, "layout": plot.layout})
        for name, colour in LIGHT.names().items():
            text = text.replace(f'"@{name}"', f'"{colour}"')
        Figure(json.loads(text))


def test_the_picture():
    assert map_figure(profile(SMALL, MapShape((3, 5), 32))).startswith(b"\x89PNG")
