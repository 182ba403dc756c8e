"""``sparse-tx pattern``: what it prints, and with which status it ends."""

import json
import time

import pytest

import sparse_tx.commands.pattern as command
from sparse_tx.commands.pattern import main


def run(capsys, *argv):
    try:
        status = main([str(arg) for arg in argv])
    except SystemExit as ended:  # how a parser ends on a mistake
        status = ended.code
    out, err = capsys.readouterr()
    return status, out, err


def test_show(capsys):
    status, out, err = run(capsys, "show", "local:2*2,strided:3", "--seq_len", 5, "--n_layer", 4)
    assert (status, err) == (0, "")
    assert out.startswith("local:2*2,strided:3: 5 positions, 1 head, 4 layers\n\nlayers 0-1, 3\n")
    assert "\n··▓█\n" in out and "\n▓··█\n" in out


def test_show_one_head_of_one_layer(capsys):
    flags = ["--seq_len", 8, "--n_head", 4, "--layer", 3, "--head", 2]
    status, out, _ = run(capsys, "show", "local:3,fixed:8:2", *flags)
    assert status == 0
    assert "layer 3" in out and "fixed:8:2@2" in out and "local" not in out


def test_show_chooses_a_length_that_shows_the_pattern(capsys):
    assert "48 positions" in run(capsys, "show", "local:4")[1]
    assert "512 positions" in run(capsys, "show", "local:64,strided:128")[1]


def test_show_draws(capsys, tmp_path):
    path = tmp_path / "pattern.png"
    status, _, err = run(capsys, "show", "local:4,strided:4", "--png", path)
    assert status == 0 and path.stat().st_size > 1000
    assert str(path) in err


def test_count_states_exact_figures(capsys):
    status, out, err = run(capsys, "count", "fixed:128:32,dense", "--seq_len", 12_288)
    assert (status, err) == (0, "")
    assert "19,470,336" in out and "75,503,616" in out
    assert "25.8 %" in out and "94,973,952 pairs, dense 151,007,232" in out
    assert "4,656 (100 %)" in out


def test_count_as_json(capsys):
    flags = ["--seq_len", 100, "--n_head", 4, "--n_layer", 3, "--tile_size", 16, "--json"]
    status, out, _ = run(capsys, "count", "local:8/strided:8,dense", *flags)
    report = json.loads(out)
    assert status == 0
    split, dense = report["layers"]
    assert (split["layers"], dense["layers"]) == ([0, 2], [1])
    assert split["heads"] == [
        {"heads": [0, 1], "pattern": "local:8", "pairs": 772},
        {"heads": [2, 3], "pattern": "strided:8", "pairs": 676},
    ]
    assert split["pairs"] == 2 * 772 + 2 * 676
    assert dense["tiles"] == {
        "empty": 0,
        "partial": 4 * 7,
        "full": 4 * 21,
        "live": 4 * 28,
        "useful_share": 5050 / (28 * 256),
    }
    assert report["pairs"] == 2 * split["pairs"] + 4 * 5050
    assert report["share_of_dense"] == report["pairs"] / report["dense_pairs"]


def test_count_is_immediate_at_a_million(capsys):
    notation = "local:1024,strided:1024,fixed:1024:32"
    began = time.perf_counter()
    status, out, _ = run(capsys, "count", notation, "--seq_len", 1_048_576)
    assert status == 0 and time.perf_counter() - began < 2
    assert "1,073,218,048" in out and "add --tile_size 128" in out


def test_count_where_nothing_is_read(capsys):
    status, out, _ = run(capsys, "count", "summary:100:1", "--seq_len", 50)
    assert status == 0 and "none read" in out


def test_check(capsys):
    status, out, _ = run(capsys, "check", "local:8,strided:8", "--seq_len", 100)
    assert status == 0 and "complete: every position" in out
    status, out, _ = run(capsys, "check", "strided:8", "--seq_len", 100)
    assert status == 1 and "not complete: 4,374 of 5,050 pairs (86.6 %)" in out
    assert "from position 0 to 1, 0 to 2" in out
    status, out, _ = run(capsys, "check", "strided:2", "--seq_len", 4, "--json")
    report = json.loads(out)
    assert status == 1 and report["missing"] == 4 and not report["complete"]
    assert {"query": 1, "key": 0} in report["examples"]


def test_check_depends_on_depth_and_heads(capsys):
    flags = ["check", "fixed:8:1", "--seq_len", 100]
    assert run(capsys, *flags)[0] == 1
    assert run(capsys, *flags, "--n_layer", 2)[0] == 0
    assert run(capsys, "check", "summary:8:1", "--seq_len", 100, "--n_head", 8)[0] == 0


def test_check_refuses_what_takes_minutes(capsys):
    status, out, err = run(capsys, "check", "local:8,strided:8", "--seq_len", 1_000_000)
    assert (status, out) == (2, "")
    assert "minutes and the limit is 2; a smaller --seq_len" in err
    assert run(capsys, "check", "dense", "--seq_len", 4096)[0] == 0


def test_the_estimate_of_a_check_is_of_the_right_size():
    stack = command.parse_pattern("local:64,strided:64")
    chosen = command.Selection(stack, {stack.layer(0): [0], stack.layer(1): [1]}, 1, 2048)
    assert 0.003 < command._seconds_to_check(chosen) < 3


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["show", "loca:8"], "did you mean 'local'?"),
        (["count", "local:8"], "'count' needs a length: add, for example, --seq_len 12288"),
        (["check", "local:8"], "'check' needs a length"),
        (["count", "local:8", "--seq_len", 0], "--seq_len is 0; it must be 1 or more"),
        (["count", "local:8", "--seq_len", 9, "--tile_size", -1], "--tile_size is -1"),
        (["show", "local:8", "--n_head", 0], "--n_head is 0"),
        (["show", "local:8", "--n_layer", 10**9], "--n_layer is 1000000000; 10000 is the most"),
        (["show", "local:8/dense", "--n_head", 3], "use a multiple of 2 heads"),
        (["show", "local:8", "--head", 1], "--head 1 of how many? Add --n_head"),
        (["show", "local:8", "--head", 4, "--n_head", 4], "heads are numbered 0 to 3"),
        (["show", "local:8", "--layer", 4, "--n_layer", 4], "layers are numbered 0 to 3"),
        (["show", "local:8", "--layer", -1], "layers are numbered 0 to 0"),
        (["show", "local:8", "--json"], "a picture has no JSON form"),
        (["show", "local:8", "--png", "/no/such/folder/x.png"], "cannot write the picture"),
        (["show", "local:8", "--seqlen", 9], "unknown flag --seqlen: did you mean '--seq_len'?"),
        (["draw", "local:8"], "action 'draw' is unknown: it is one of show, count, check"),
        (["cuont", "local:8"], "action 'cuont' is unknown: did you mean 'count'?"),
        ([], "required: action, notation"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(capsys, argv, sentence):
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert sentence in err and err.count("\n") == 1 and err.startswith("error: ")


def test_show_a_map(capsys, tmp_path):
    path = tmp_path / "map.png"
    flags = ["--map", "3x4", "--query", "1,1", "--png", path]
    status, out, err = run(capsys, "show", "rows:4,columns:4", *flags)
    assert status == 0 and path.stat().st_size > 1000 and str(path) in err
    assert out.startswith(
        "rows:4,columns:4: a map of 3 x 4, 1 head, 2 layers; row 1, column 1 looks"
    )
    assert "\n▓█▓▓\n" in out and "all 2 layers in turn: 12 of 12" in out


def test_a_map_too_large_for_text_is_drawn(capsys, tmp_path):
    path = tmp_path / "map.png"
    status, _, err = run(capsys, "show", "rows:200", "--map", "20X200")
    assert status == 2 and "a map of 20 x 200 has no picture in text" in err
    status, out, _ = run(capsys, "show", "rows:200", "--map", "20X200", "--png", path)
    assert status == 0 and path.stat().st_size > 1000 and out.count("\n") == 1


def test_the_estimate_of_a_map_is_of_the_right_size():
    for notation, size in (("rows:64,columns:64", 64), ("local:4", 64), ("dense", 64)):
        stack = command.parse_pattern(notation)
        layers = {layer: [n] for n, layer in enumerate(stack.layers)}
        chosen = command.Selection(stack, layers, 1, size * size, (size, size))
        assert 0.002 < command._seconds_to_check(chosen) < 3


def test_count_a_map(capsys):
    status, out, _ = run(capsys, "count", "rows:97,columns:97", "--map", "97x97", "--json")
    report = json.loads(out)
    assert status == 0 and report["map"] == [97, 97] and report["tile_size"] is None
    assert report["pairs"] == 97**3 * 2 and report["dense_pairs"] == 2 * 97**4
    assert "tiles" not in report["layers"][0]
    status, out, _ = run(capsys, "count", "tiles:97:8", "--map", "97x97")
    assert status == 0 and "tile_size" not in out
    assert f"{(12 * 64 + 1) ** 2:,}" in out  # 12 tiles of 8 and one of 1, either way


def test_check_a_map(capsys):
    status, out, _ = run(capsys, "check", "rows:6,columns:6", "--map", "4x6")
    assert status == 0 and "complete: every position reaches every position of the map" in out
    status, out, _ = run(capsys, "check", "rows:6*2", "--map", "4x6")
    assert status == 1 and "not complete: 432 of 576 pairs (75 %)" in out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["count", "rows:6", "--map", "4"], "--map is '4'; write two whole numbers as in 28x28"),
        (["count", "rows:6", "--map", "4x-6"], "--map is '4x-6'"),
        (["count", "rows:6", "--map", "0x6"], "--map is 0x6; it must have 1 to"),
        (["count", "rows:6", "--map", "4x7"], "is for maps with rows of 6 positions"),
        (["count", "rows:6", "--map", "4x6", "--seq_len", 24], "--seq_len belongs to texts"),
        (["count", "rows:6", "--map", "4x6", "--tile_size", 8], "--tile_size belongs to texts"),
        (["show", "rows:6", "--query", "1,1"], "--query 1,1 of which map? Add --map"),
        (["show", "rows:6", "--map", "4x6", "--query", "4,0"], "whose last place is 3,5"),
        (["show", "rows:6", "--map", "4x6", "--query", "4"], "--query is '4'; write two"),
        (["count", "tiles:6:2", "--seq_len", 24], "has no causal form: it belongs to maps"),
        (["show", "lattice:6:2"], "has no causal form"),
        (
            ["check", "local:99", "--map", "1000x1000"],
            "minutes and the limit is 2; a smaller --map",
        ),
    ],
)
def test_mistakes_with_maps(capsys, argv, sentence):
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert sentence in err and err.count("\n") == 1 and err.startswith("error: ")


def test_a_picture_that_would_take_minutes(capsys):
    status, _, err = run(capsys, "show", "local:128", "--seq_len", 2**24 + 1)
    assert status == 2
    assert "16,777,217 positions takes minutes and 16,777,216 are the most" in err


def test_no_pattern_has_an_emoji_in_it(capsys):
    status, out, _ = run(capsys, "count", "summary:100:10", "--seq_len", 1000)
    assert status == 0 and "summary:100:10" in out
