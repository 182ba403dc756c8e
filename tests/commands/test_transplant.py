"""The transplant command, and training that begins from its result."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from sparse_tx import load_checkpoint
from sparse_tx.checkpoint import read_checkpoint
from sparse_tx.commands import main as console
from sparse_tx.commands.sample import main as sample
from sparse_tx.commands.train import main as train
from sparse_tx.commands.transplant import main
from sparse_tx.data import prepare_corpus
from sparse_tx.evaluation import score
from tests.training.helpers import TEXT

TINY = ["--preset=tiny", "--data=text.txt", "--cache_dir=cache", "--max_steps=12", "--device=cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a text and a run on it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("text.txt").write_bytes(TEXT)
        assert train([*TINY, "--ema=0.5", "--eval_every=100", "--out=run"]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_a_copy(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


def transplant(*flags):
    return main(["--checkpoint=run", "--device=cpu", *flags])


def files():
    """All but what is cached of corpora."""
    return {path for path in Path(".").rglob("*") if "cache" not in path.parts}


def refused(capsys, command, *flags):
    before = files()
    capsys.readouterr()
    try:
        status = command(list(flags))
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err
    assert status == 2
    assert said.startswith("error: ")
    assert len(said.strip().splitlines()) == 1
    assert files() == before
    return said


def test_both_patterns_are_scored_on_the_same_bytes(capsys):
    assert transplant("--pattern=fixed:16:4", "--eval_bytes=500", "--json=new/found.json") == 0
    said = capsys.readouterr().out
    found = json.loads(Path("new/found.json").read_text())
    corpus = prepare_corpus("text.txt", cache_dir=Path("cache"))
    for name, pattern in (("before", "local:8,strided:8"), ("after", "fixed:16:4")):
        model, tokenizer, _ = load_checkpoint("run", pattern=pattern)  # the averaged weights
        expected = score(model, corpus.valid, tokenizer.token_bytes, max_bytes=500)
        assert found[f"bpb_{name}"] == expected.bpb
        assert found[f"pattern_{name}"] == pattern
        assert f"{name:9}  {expected.bpb:.4f} bits per byte under {pattern}\n" in said
    assert found["change"] == found["bpb_after"] - found["bpb_before"] != 0
    assert f"change     {found['change']:+.4f} bits per byte" in said
    assert "the first 500 bytes, each scored once, in windows of 64 tokens" in said
    assert (found["bytes"], found["seq_len"], found["step"]) == (500, 64, 12)
    assert found["protocol"] in said
    assert "the trained grid of 8x8 is kept" in said


def test_length_and_data_are_those_of_the_run_unless_given(capsys):
    Path("other.txt").write_bytes(TEXT[::-1])
    flags = "--seq_len=100", "--data=other.txt", "--json=found.json"
    assert transplant("--pattern=dense", *flags) == 0
    found = json.loads(Path("found.json").read_text())
    assert (found["seq_len"], found["data"], found["bytes"]) == (100, "other.txt", 709)
    assert "windows of 100 tokens" in capsys.readouterr().out
    corpus = prepare_corpus("other.txt", cache_dir=Path("cache"))
    model, tokenizer, _ = load_checkpoint("run", seq_len=100)
    expected = score(model, corpus.valid, tokenizer.token_bytes)
    assert found["bpb_before"] == expected.bpb


def test_what_it_leaves_is_sampled_and_trained_on(capsys):
    assert transplant("--pattern=dense,strided:16", "--seq_len=90", "--out=moved") == 0
    assert "--init_from moved --out moved-tuned" in capsys.readouterr().out
    settings = yaml.safe_load(Path("moved/config.yaml").read_text())
    assert settings["position_shape"] == [12, 8]
    assert settings["init_from"] == "run/checkpoints/step-00000012"
    assert sample(["--checkpoint=moved", "--length=20"]) == 0
    moved = read_checkpoint("moved")
    source = read_checkpoint("run")
    assert torch.equal(moved.weights["head.weight"], source.ema_state["head.weight"])
    assert moved.weights["positions.tables.0"].shape == (12, 32)

    assert train(["--init_from=moved", "--max_steps=3", "--out=tuned"]) == 0
    said = capsys.readouterr().out
    assert "begins with the weights of moved/checkpoints/step-00000000" in said
    assert "positions: the trained grid of 12x8 is kept" in said
    tuned = read_checkpoint("tuned")
    assert tuned.config.model.pattern == "dense,strided:16"
    assert tuned.config.training.init_from == "moved"
    assert "begin a new run in another --out with --init_from moved" in refused(
        capsys, train, "--resume", "--out=moved"
    )
    # A run that began so is resumed as any other.
    assert train(["--resume", "--out=tuned", "--max_steps=4"]) == 0
    assert "begins with" not in capsys.readouterr().out


def test_init_from_begins_with_the_averaged_weights_and_a_fresh_optimiser():
    flags = ["--seq_len=96", "--pattern=fixed:16:4", "--max_steps=2", "--keep_last=9"]
    assert train(["--init_from=run", *flags, "--out=longer"]) == 0
    source = read_checkpoint("run", with_training_state=True)
    begun = read_checkpoint("longer/checkpoints/step-00000000", with_training_state=True)
    for name, weight in source.ema_state.items():
        found = begun.model_state[name]
        assert torch.equal(found[: len(weight)], weight), name
    assert begun.model_state["positions.tables.0"].shape == (12, 32)
    assert begun.training_state["optimisers"][0]["state"] == {}
    assert begun.config.model.grid == (12, 8)
    # Everything else is as the run had it.
    assert (begun.config.training.ema, begun.config.data.data) == (0.5, "text.txt")
    assert begun.training_state["step"] == 0
    # Training goes on from where it was, not from 8 bits per byte.
    first = json.loads(Path("longer/metrics.jsonl").read_text().splitlines()[0])
    before = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert first["train_bpb"] < before["train_bpb"] - 0.5


def test_a_preset_gives_the_settings_where_one_is_named():
    assert train([*TINY, "--init_from=run/checkpoints/step-00000012", "--out=new"]) == 0
    assert read_checkpoint("new").config.training.ema == 0
    assert train(["--config=new/config.yaml", "--preset=tiny", "--out=again"]) == 0
    found = [(Path(run) / "metrics.jsonl").read_text().splitlines() for run in ("new", "again")]
    losses = [[json.loads(line)["train_bpb"] for line in lines] for lines in found]
    assert losses[0] == losses[1]


def test_a_preset_takes_over_the_symbols_of_the_tokenizer():
    assert train([*TINY, "--tokenizer=char", "--out=chars"]) == 0
    assert train([*TINY, "--tokenizer=char", "--init_from=chars", "--out=new"]) == 0
    found, source = (read_checkpoint(folder).config.model for folder in ("new", "chars"))
    assert found.vocab_size == source.vocab_size < 256


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--n_layer=3"], "n_layer is 3, and the weights are of a model whose n_layer is 2; leave"),
        (["--preset=cpu", "--data=text.txt"], "n_layer is 4, and the weights are of a model"),
        (["--preset=cpu"], "(without --preset, all settings are taken from the checkpoint)"),
        (["--activation=relu2"], "activation is relu2, and the weights are of a model whose"),
        (["--position_shape=16,4"], "position_shape is 16x4, and the weights are of a grid of 8x8"),
        (["--tokenizer=char"], "tokenizer is char, and 'run/checkpoints/step-00000012' was"),
        (
            ["--vocab_size=300"],
            "vocab_size is 300, and the weights are of a model whose vocab_size",
        ),
        (["--resume"], "--resume and --init_from exclude each other"),
        (["--pattern=lokal:4"], "unknown word 'lokal'"),
        (["--pattern=dense/dense/dense"], "2 heads cannot be split into 3 equal groups"),
        (["--seq_len=100000"], "a window of seq_len 100,000 tokens does not fit"),
        (["--init_from=absent"], "the folder 'absent' does not exist"),
        (["--init_from=cache"], "there is no checkpoint in 'cache' yet"),
        (["--out=run"], "run already holds a run"),
    ],
)
def test_a_run_that_cannot_begin_so(flags, sentence, capsys):
    assert sentence in refused(capsys, train, "--init_from=run", "--out=new", *flags)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--pattern=lokal:4"], "unknown word 'lokal' in pattern 'lokal:4': did you mean 'local'?"),
        (["--pattern=dense/dense/dense"], "2 heads cannot be split into 3 equal groups"),
        (["--pattern="], "write one such as"),
        (["--seq_len=0"], "seq_len is 0; it must be 1 or more"),
        (["--eval_bytes=0"], "eval_bytes is 0; it must be 1 or more"),
        (["--checkpoint=absent"], "the folder 'absent' does not exist"),
        (["--data=absent.txt"], "absent.txt"),
        (["--engine=fast"], "unknown attention engine 'fast'"),
        (["--out=run"], "run already holds a run; name another folder"),
        (
            ["--out=run/checkpoints/step-00000012"],
            "is a checkpoint of a run; give the run's folder",
        ),
        (["--out=text.txt"], "--out text.txt is a file; name a folder"),
        (["--out="], "--out is empty"),
        (["--json=run"], "--json 'run' is a folder"),
        (["--patern=dense"], "unknown flag --patern: did you mean '--pattern'?"),
    ],
)
def test_mistakes_get_a_sentence_and_write_nothing(flags, sentence, capsys):
    given = ["--checkpoint=run", "--pattern=dense", "--device=cpu", *flags]
    assert sentence in refused(capsys, main, *given)


@pytest.mark.parametrize("command", [main, train])
def test_a_damaged_checkpoint(command, capsys):
    weights = Path("run/checkpoints/step-00000012/ema.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    flags = {main: ["--checkpoint=run", "--pattern=dense"], train: ["--init_from=run", "--out=new"]}
    said = refused(capsys, command, *flags[command])
    assert "ema.safetensors was altered after it was saved" in said


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--optimiser=muon", "optimiser muon (it is adamw there)"),
        ("--tokenizer=char", "tokenizer char (it is byte there)"),
        ("--precision=fp16", "precision fp16 (it is fp32 there)"),
        ("--ema=0", "ema 0.0 (it is 0.5 there)"),
    ],
)
def test_a_resume_with_another_optimiser_or_tokenizer_is_refused(flag, sentence, capsys):
    said = refused(capsys, train, "--out=run", "--resume", "--max_steps=20", flag)
    assert f"this run cannot be resumed with {sentence}; leave that out" in said


def test_it_is_among_the_commands(capsys):
    assert console.main([]) == 0
    assert "transplant  put a trained model" in capsys.readouterr().out


def test_a_folder_with_the_configuration_of_another_program(capsys):
    Path("other").mkdir()
    Path("other/config.yaml").write_text("hydra: 1\n")
    said = refused(capsys, main, "--checkpoint=run", "--pattern=dense", "--out=other")
    assert "has a config.yaml that is not of a run" in said


def test_lines_of_the_same_weights_under_another_pattern_are_of_another_model(capsys):
    assert transplant("--pattern=dense", "--out=other") == 0
    Path("prompts").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    lines = ["--prompts=prompts", "--length=3", "--device=cpu", "--out=lines"]
    assert sample(["--checkpoint=run", *lines]) == 0
    Path("lines").write_text("".join(Path("lines").read_text().splitlines(True)[:1]))
    assert "of another model" in refused(capsys, sample, "--checkpoint=other", *lines, "--resume")
    assert sample(["--checkpoint=run", *lines, "--resume"]) == 0
    assert len(Path("lines").read_text().splitlines()) == 2


def test_the_cache_of_another_machine_is_not_asked_for():
    shutil.rmtree("cache")  # which the run names
    assert transplant("--pattern=dense", "--eval_bytes=64") == 0
    assert not Path("cache").exists()
