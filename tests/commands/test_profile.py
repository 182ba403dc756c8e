"""The profile command, as users call it."""

import io
import json

import pytest

from sparse_tx.commands.main import main

TINY = ["profile", "--preset", "tiny"]
QUICK = [*TINY, "--flops_per_s", "1e11"]


def refused(capsys, *argv) -> str:
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset", "huge"], "'huge'"),
        (["--seq_lens", "1024,many"], "'many'"),
        (["--seq_lens", "0"], "0"),
        (["--patterns", "lokal:5"], "lokal"),
        (["--patterns", "fixed:sqrt:0"], "fixed:sqrt:0"),
        (["--work", "trian"], "did you mean 'train'?"),
        (["--engine", "fast"], "unknown attention engine 'fast'"),
        (["--fit", "--memory", "24"], "without a unit"),
        (["--fit"], "--fit --memory 24GB"),
        (["--memory", "24GB"], "go together"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--flops_per_s", "-1"], "-1"),
        (["--rounds", "0"], "rounds is 0"),
        (["--limit_s", "0"], "limit_s is 0"),
        (["--reach", "0"], "reach is 0"),
        (["--reach", "9999999999"], "the length is 9999999999"),
        (["--tokens", "-5"], "tokens is -5"),
        (["--tokens", "1e6", "--work", "forward,decode"], "add train to --work"),
        (["--n_head", "3"], "n_head"),
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--checkpoint", ""], "--checkpoint is ''"),
        (["--preset", ""], "--preset is ''"),
        (["--patterns", ""], "--patterns is ''"),
        (["--out", " "], "--out is ' '"),
        (["--flops_per_s", "1e400"], "finite"),
        (["--batch_size", "1000000000"], "17,179,869,184 tokens at a time"),
        (["--reach", "64"], "name another one too"),
        (["--preset", "cifar10-paper", "--seq_lens", "100,5000"], "5,000 tokens"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_sentence(capsys, flags, words):
    assert words in refused(capsys, "profile", "--patterns", "dense", "--seq_lens", "64", *flags)


def test_reach_of_a_model_whose_positions_end(capsys):
    """Attention alone has no positions: it reaches further than the model's grid."""
    model = ["--preset", "mnist", "--patterns", "strided:28", "--seq_lens", "784"]
    flags = ["--work", "attention", "--reach", "700", "--flops_per_s", "1e11"]
    assert main(["profile", *model, *flags]) == 0
    assert "700" in capsys.readouterr().out


def test_memory_that_not_even_torch_fits_into(capsys):
    assert main([*QUICK, "--fit", "--memory", "1MB"]) == 2
    assert "a process with torch takes" in capsys.readouterr().err.splitlines()[-1]


def test_a_preset_and_a_checkpoint_are_two_models(capsys):
    words = refused(capsys, "profile", "--preset", "tiny", "--checkpoint", "out")
    assert "name two models" in words


def test_a_flag_that_does_not_exist(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["profile", "--seq_len", "64"])
    assert ended.value.code == 2
    assert "--seq_lens" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["cifar10-paper", "enwik8-paper", "imagenet64-paper"])
def test_default_lengths_fit_a_fixed_grid_of_positions(capsys, preset):
    argv = ["profile", "--preset", preset, "--patterns", "local:128", "--flops_per_s", "1e11"]
    assert main(argv) == 0
    assert preset in capsys.readouterr().out


def test_a_grid_of_positions_can_be_given_up_for_longer_sequences(capsys):
    argv = ["profile", "--preset", "cifar10-paper", "--patterns", "local:128", "--position"]
    argv += ["rope", "--seq_lens", "8k", "--flops_per_s", "1e11"]
    assert main(argv) == 0
    assert "8,192" in capsys.readouterr().out


def test_figures_at_a_stated_rate(capsys):
    assert main([*QUICK, "--seq_lens", "1k,1M", "--tokens", "7.2e9", "--n_layer", "6"]) == 0
    printed = capsys.readouterr().out
    for words in ("1,024", "1,048,576", "6 layers", "dense", "local:8,strided:8", "7,200,000,000"):
        assert words in printed


def test_heads_in_groups_are_always_recomputed(capsys):
    flags = ["--seq_lens", "64", "--patterns", "local:8", "--work", "train"]
    grouped = ["--head_chunk", "1", "--stored_precision", "bf16"]
    assert main([*QUICK, *flags, "--recompute", "both", *grouped]) == 0
    said = capsys.readouterr().out
    assert "2 heads taken 1 at a time, blocks stored in bf16, batch size" in said.replace("\n", " ")
    assert "recompute on" in said
    assert " off " not in said


def test_a_reader_that_has_seen_enough_is_no_failure(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    silenced = []
    monkeypatch.setattr("sparse_tx.commands.shell.silence_stdout", lambda: silenced.append(True))
    monkeypatch.setattr("sys.stdout", Closed())
    assert main([*QUICK, "--seq_lens", "64", "--patterns", "local:8"]) == 0
    assert silenced


def test_a_report_beside_the_figures(capsys, tmp_path):
    out = tmp_path / "report"
    argv = [*QUICK, "--seq_lens", "256,512", "--recompute", "both", "--out", str(out)]
    assert main(argv) == 0
    assert {path.suffix for path in out.iterdir()} == {".html", ".png", ".csv", ".json"}
    rows = json.loads((out / "profile.json").read_text())["profile"]["rows"]
    assert len(rows) == 2 * 2 * 2


def test_a_measured_profile_goes_on_where_it_stopped(capsys, tmp_path):
    argv = [*TINY, "--seq_lens", "64,300", "--patterns", "local:8", "--measure", "--rounds", "1"]
    argv += ["--out", str(tmp_path)]
    assert main(argv) == 0
    log = (tmp_path / "measurements.jsonl").read_bytes()
    assert main(argv) == 0
    assert (tmp_path / "measurements.jsonl").read_bytes() == log
    rows = json.loads((tmp_path / "profile.json").read_text())["profile"]["rows"]
    assert all(row["measurement"]["peak_bytes"] > 0 for row in rows)


def test_what_fits(capsys, tmp_path):
    argv = [*TINY, "--patterns", "local:8", "--fit", "--memory", "400MB", "--limit_s", "20"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    fits = json.loads((tmp_path / "profile.json").read_text())["profile"]["fits"]
    assert {(fit["setting"]["work"], fit["largest"]) for fit in fits} == {
        ("train", "seq_len"),
        ("train", "batch_size"),
        ("prefill", "seq_len"),
    }


def test_out_that_is_a_file(capsys, tmp_path):
    (tmp_path / "file").write_text("kept")
    assert "file" in refused(capsys, *QUICK, "--out", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "kept"


def test_a_grid_has_to_hold_the_lengths_that_are_asked_for_alone(capsys):
    flags = ["--position", "grid", "--position_shape", "32,32", "--flops_per_s", "1e11"]
    assert main(["profile", "--patterns", "local:8", *flags, "--seq_lens", "512,1k"]) == 0
    assert "1,024" in capsys.readouterr().out
    words = refused(capsys, "profile", "--patterns", "local:8", *flags, "--seq_lens", "1025")
    assert "1025" in words.replace(",", "")
