"""The evaluate command: its figures, its files, and what it refuses."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from sparse_tx import load_checkpoint
from sparse_tx.accounting import useful_flops
from sparse_tx.checkpoint import read_checkpoint
from sparse_tx.commands import evaluate as command
from sparse_tx.commands import main as console
from sparse_tx.commands.evaluate import main
from sparse_tx.commands.train import main as train
from sparse_tx.data import CharTokenizer, prepare_corpus
from sparse_tx.evaluation import TrainedModel, evaluate, plan_windows, score
from tests.training.helpers import TEXT

TINY = ["--preset=tiny", "--data=text.txt", "--cache_dir=cache", "--max_steps=12", "--device=cpu"]
# Three bytes a character for the most part: of three cuts, two fall within one.
EURO = "1€ + 22€ = 23€; €€€€€€€\n" * 200
CATS = "the cat, the café; " * 300


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with texts and runs on them, in bytes and in BPE tokens."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("text.txt").write_bytes(TEXT)
        Path("euro.txt").write_text(EURO, encoding="utf-8")
        assert train([*TINY, "--ema=0.5", "--eval_every=100", "--out=run"]) == 0
        bpe = ["--tokenizer=bpe", "--vocab_size=300", "--max_steps=1", "--split=80,10,10"]
        assert train([*TINY, *bpe, "--data=euro.txt", "--out=words"]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_a_copy(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*flags):
    return main(["--checkpoint=run", "--device=cpu", *flags])


def files():
    """All but what is cached of corpora, and when it was last written."""
    paths = (path for path in Path(".").rglob("*") if "cache" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}


def refused(capsys, *flags):
    before = files()
    capsys.readouterr()
    try:
        status = main(list(flags))
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    assert status == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert len(said.err.strip().splitlines()) == 1
    assert files() == before
    return said.err


def corpus_of(source="text.txt", **settings):
    return prepare_corpus(source, cache_dir=Path("cache"), **settings)


def test_figures_are_those_of_the_library(capsys):
    assert run("--min_context=48,0,16", "--json=new/found.json") == 0
    said = capsys.readouterr().out
    found = json.loads(Path("new/found.json").read_text())
    model, tokenizer, _ = load_checkpoint("run")
    text = corpus_of().valid
    plan = plan_windows(len(text), 64, [48, 0, 16])
    expected = evaluate(TrainedModel(model), text, tokenizer.token_bytes[text], plan)
    assert [p["bpb"] for p in found["protocols"]] == [s.bpb for s in expected.scores]
    assert [p["min_context"] for p in found["protocols"]] == [48, 0, 16]
    for name in ("bpb", "bytes", "protocol"):
        assert found[name] == found["protocols"][0][name]
    assert found["protocols"][1]["bpb"] == pytest.approx(
        score(model, text, tokenizer.token_bytes).bpb, rel=1e-6
    )
    for entry, result in zip(found["protocols"], expected.scores, strict=True):
        assert (entry["bytes"], entry["tokens"]) == (len(text), len(text))
        assert entry["windows"] == result.windows.n_windows
        assert f"min context {entry['min_context']}: {entry['protocol']}\n" in said
        row = f"{entry['min_context']} {entry['bpb']:.4f} {len(text):,} {len(text):,}"
        assert row in " ".join(said.split())
    assert [
        (p["tokens_before_first"], p["tokens_before_last"], p["bpb"], p["bytes"])
        for p in found["curve"]
    ] == [(p.first, p.last, p.bpb, p.bytes) for p in expected.curve]
    assert "32 to 63" in said
    assert "over all windows of min context 48:" in said
    assert said.endswith("wrote      new/found.json\n")


def test_what_identifies_model_and_data_is_written():
    assert run("--split=test", "--max_bytes=500", "--json=found.json") == 0
    found = json.loads(Path("found.json").read_text())
    weights = Path("run/checkpoints/step-00000012/ema.safetensors").read_bytes()
    source = read_checkpoint("run")
    model, _, config = load_checkpoint("run")
    assert found["model"] == {
        "kind": "sparse_tx",
        "path": "run/checkpoints/step-00000012",
        "step": 12,
        "parameters": model.n_parameters(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "seq_len": 64,
        "pattern": "local:8,strided:8",
        "engine": model.engine()[0],
        "tokenizer": source.tokenizer.fingerprint,
    }
    scored = corpus_of().test[:500].tobytes()
    assert found["data"] == {
        "source": "text.txt",
        "source_sha256": hashlib.sha256(TEXT).hexdigest(),
        "split": "test",
        "shares": [90, 5, 5],
        "bytes": 500,
        "sha256": hashlib.sha256(scored).hexdigest(),
    }
    cost = found["cost"]
    assert cost.pop("seconds") > 0
    flops = 7 * useful_flops(config.model).all_parts.forward
    flops += useful_flops(config.model, 500 - 7 * 64).all_parts.forward
    assert cost == {"windows": 8, "tokens_through_model": 500, "useful_flops": flops}
    assert found["provenance"]["versions"]["torch"]


def test_the_whole_source_is_one_text():
    assert run("--split=all", "--max_bytes=5000", "--json=found.json") == 0
    found = json.loads(Path("found.json").read_text())
    assert found["data"]["sha256"] == hashlib.sha256(TEXT[:5000]).hexdigest()
    assert found["data"]["shares"] is None
    model, tokenizer, _ = load_checkpoint("run")
    expected = score(model, np.frombuffer(TEXT, np.uint8), tokenizer.token_bytes, max_bytes=5000)
    assert found["bpb"] == pytest.approx(expected.bpb, rel=1e-6)


def test_bits_are_per_byte_of_text_whatever_the_tokens():
    assert main(["--checkpoint=words", "--device=cpu", "--split=test", "--json=found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    model, tokenizer, _ = load_checkpoint("words")
    corpus = corpus_of("euro.txt", existing_tokenizer=tokenizer, split=(80, 10, 10))
    expected = score(model, corpus.test, tokenizer.token_bytes)
    assert found["bpb"] == pytest.approx(expected.bpb, rel=1e-6)
    assert found["bytes"] == corpus.n_bytes["test"] > found["protocols"][0]["tokens"]
    text = tokenizer.decode(corpus.test)
    assert found["data"]["sha256"] == hashlib.sha256(text).hexdigest()
    assert found["data"]["shares"] == [80, 10, 10]


def test_windows_shares_and_data_can_be_others_than_the_runs():
    flags = "--seq_len=40", "--data=euro.txt", "--shares=50,20,30", "--min_context=30"
    assert run(*flags, "--json=found.json") == 0
    found = json.loads(Path("found.json").read_text())
    text = corpus_of("euro.txt", split=(50, 20, 30)).valid
    assert (found["bytes"], found["model"]["seq_len"]) == (len(text), 40)
    assert "windows of 40 tokens that begin 10 apart" in found["protocol"]
    assert found["data"]["sha256"] == hashlib.sha256(text.tobytes()).hexdigest()


def test_the_cost_is_said_first_and_the_time_on_stderr(capsys):
    # 646 windows, of which 256 are run at once.
    assert run("--min_context=63") == 0
    said = capsys.readouterr()
    n = len(corpus_of().valid)
    windows = n - 63
    lines = said.out.splitlines()
    assert lines[0].startswith("model      run/checkpoints/step-00000012, step 12, ")
    assert lines[1] == (
        f"text       the valid split of text.txt: {n} bytes, {n} tokens of a byte tokenizer"
    )
    assert lines[2].startswith(
        f"work       {windows} windows of up to 64 tokens: {64 * windows:,} tokens through the"
        f" model, {64 * windows / n:.2f} for each that is scored; "
    )
    assert lines[2].endswith("FLOP, useful ones")
    assert "time       about " in said.err
    assert said.err.count("\n") == 1


def test_the_same_command_says_the_same(capsys):
    said = []
    for _ in range(2):
        assert run("--min_context=0,60") == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_ctrl_c_leaves_nothing_half_written(capsys, monkeypatch):
    Path("found.json").write_text("old")
    before = files()

    def interrupted(*_, on_progress, **__):
        on_progress(64, 640)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "evaluate", interrupted)
    assert run("--json=found.json") == 130
    assert run("--json=new/found.json") == 130
    assert files() == before
    assert not Path("new").exists()
    assert capsys.readouterr().err.splitlines() == ["interrupted", "interrupted"]


def test_a_full_disk_leaves_the_old_file(capsys, monkeypatch):
    Path("found.json").write_text("old")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparse_tx.files.sync", full)
    before = files()
    assert run("--json=found.json") == 2
    said = capsys.readouterr().err
    assert "error: --json found.json cannot be written: No space left on device" in said
    assert files() == before


MISTAKES = [
    (["--split=train"], "--split is 'train'; it must be one of valid, test, all"),
    (["--split=test", "--shares=90,10,0"], "the test split of 'text.txt' is empty, for the shares"),
    (["--shares=90,10"], "the split is 90, 10; give the shares of train, valid and test"),
    (["--shares=most"], "--shares is 'most'; give three numbers in per cent, such as 90,5,5"),
    (["--min_context=64"], "min_context is 64, and a window has 64 tokens; it must be from 0 to 6"),
    (["--min_context=0,-1"], "min_context is -1"),
    (["--min_context=50", "--seq_len=50"], "min_context is 50, and a window has 50 tokens"),
    (["--min_context=some"], "--min_context is"),
    (["--min_context=[]"], "min_context is empty"),
    (["--max_bytes=0"], "max_bytes is 0; it must be 1 or more"),
    (["--seq_len=0"], "seq_len is 0; it must be 1 or more"),
    (["--seq_len=65"], "seq_len is 65, and the model takes 64 tokens at once"),
    (["--json=run"], "--json 'run' is a folder; name a file"),
    (["--json=text.txt/found.json"], "--json text.txt/found.json cannot be written: Not a dir"),
    (["--json=/dev/null"], "--json '/dev/null' exists and is not a regular file"),
    (["--checkpoint=absent"], "the folder 'absent' does not exist"),
    (["--checkpoint=cache"], "there is no checkpoint in 'cache' yet"),
    (["--checkpoint=text.txt"], "the folder 'text.txt' is a file"),
    (["--data=absent.txt"], "absent.txt"),
    (["--data="], "there is no source ''"),
    (["--engine=fast"], "unknown attention engine 'fast'"),
    (["--which=first"], "which"),
    (["--hf=foreign"], "give one (both are given)"),
    (["--mincontext=4"], "unknown flag --mincontext: did you mean '--min_context'?"),
]


@pytest.mark.parametrize(("flags", "sentence"), MISTAKES)
def test_mistakes_get_a_sentence_before_anything_is_computed(flags, sentence, capsys, monkeypatch):
    monkeypatch.setattr(command, "evaluate", lambda *_, **__: pytest.fail("the model was run"))
    assert sentence in refused(capsys, "--checkpoint=run", "--device=cpu", *flags)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--checkpoint names a model of sparse_tx and --hf a Hugging Face model; give one"),
        (["--hf=foreign"], "--hf brings no text; name one with --data"),
        (["--hf=foreign", "--engine=views"], "--engine goes with --checkpoint"),
        (["--hf=foreign", "--which=best"], "--which goes with --checkpoint"),
        (["--checkpoint=run", "--split=all", "--shares=9,1,0"], "--split all takes the whole text"),
    ],
)
def test_flags_that_do_not_go_together(flags, sentence, capsys):
    assert sentence in refused(capsys, *flags)


def test_a_token_that_is_longer_than_the_limit_leaves_nothing_to_score(capsys):
    Path("euros.txt").write_text("€€€€€", encoding="utf-8")
    flags = "--checkpoint=words", "--device=cpu", "--data=euros.txt", "--split=all"
    assert "no whole token to score" in refused(capsys, *flags, "--max_bytes=1")


def test_a_damaged_checkpoint(capsys):
    weights = Path("run/checkpoints/step-00000012/ema.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = refused(capsys, "--checkpoint=run", "--device=cpu")
    assert "ema.safetensors was altered after it was saved" in said


def test_it_is_among_the_commands(capsys):
    assert console.main([]) == 0
    assert "evaluate    score a text in bits per byte" in capsys.readouterr().out


# --- Models of another maker --------------------------------------------------------------------


def test_without_transformers_it_is_said_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    said = refused(capsys, "--hf=foreign", "--data=text.txt", "--device=cpu")
    assert 'install it with pip install "sparse_tx[hf]"' in said


@pytest.fixture
def foreign():
    pytest.importorskip("transformers")
    from tests.evaluation.foreign import byte_level_bpe, save_gpt2

    save_gpt2(Path("foreign"), byte_level_bpe())
    return Path("foreign")


def score_foreign(*flags):
    return main(["--hf=foreign", "--data=euro.txt", "--device=cpu", *flags])


def test_a_foreign_model_is_scored_under_the_same_protocols(foreign, capsys):
    from sparse_tx.evaluation import load_hugging_face

    Path("cats.txt").write_text(CATS, encoding="utf-8")
    flags = "--min_context=5,0", "--seq_len=11", "--data=cats.txt", "--json=found.json"
    assert score_foreign(*flags) == 0
    said = capsys.readouterr()
    assert said.err.count("\n") <= 1  # the time; nothing of the library's
    found = json.loads(Path("found.json").read_text())
    model = load_hugging_face(foreign, seq_len=11)
    data = char_split("valid", CATS, "cats.txt")
    ids, n_bytes = model.encode(data)
    expected = evaluate(model, ids, n_bytes, plan_windows(len(ids), 11, [5, 0]))
    assert [p["bpb"] for p in found["protocols"]] == [s.bpb for s in expected.scores]
    assert found["bytes"] == len(data) > len(ids)
    assert found["data"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert found["model"] == {
        "kind": "hugging_face",
        "path": "foreign",
        "step": None,
        "parameters": model.n_parameters,
        "weights_sha256": model.weights_sha256(),
        "seq_len": 11,
        "architecture": "GPT2LMHeadModel",
    }
    assert found["cost"]["useful_flops"] is None
    assert found["provenance"]["versions"]["transformers"]
    assert "begins with the tokenizer's EOS token <|end|>" in said.out


def char_split(name, text=EURO, source="euro.txt", **settings):
    """The split as a tokenizer that knows characters has it."""
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    corpus = corpus_of(source, existing_tokenizer=tokenizer, **settings)
    return tokenizer.decode(getattr(corpus, name))


# Of 8,800 bytes: cuts at and within characters, at either end and at both.
@pytest.mark.parametrize(
    "shares", ["90,5,5", "90,4.3,5.7", "90.03,4.28,5.69", "90.04,4.96,5", "90.04,0.06,9.9"]
)
@pytest.mark.parametrize("split", ["valid", "test"])
def test_splits_are_cut_between_characters(foreign, shares, split):
    flags = f"--split={split}", f"--shares={shares}", "--json=found.json"
    assert score_foreign(*flags) == 0
    found = json.loads(Path("found.json").read_text())
    expected = char_split(split, split=tuple(map(float, shares.split(","))))
    assert found["data"]["sha256"] == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("max_bytes", [3, 4, 5, 6, 10**6])
def test_a_limit_takes_whole_characters(foreign, max_bytes):
    assert score_foreign("--split=all", f"--max_bytes={max_bytes}", "--json=found.json") == 0
    found = json.loads(Path("found.json").read_text())
    data = EURO.encode()[:max_bytes].decode(errors="ignore").encode()
    assert found["bytes"] == len(data)
    assert found["data"]["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--min_context=17"], "min_context is 17, and a window has 17 tokens"),
        (["--data=binary"], "is not UTF-8"),
        (["--hf=run"], "there is no Hugging Face model in 'run'"),
        (["--hf="], "there is no Hugging Face model in '.'"),
    ],
)
def test_mistakes_about_foreign_models(foreign, flags, sentence, capsys, monkeypatch):
    Path("binary").write_bytes(os.urandom(100) + b"\xff" * 100)
    monkeypatch.setattr(command, "evaluate", lambda *_, **__: pytest.fail("the model was run"))
    given = ["--hf=foreign", "--data=text.txt", "--split=all", "--device=cpu", *flags]
    assert sentence in refused(capsys, *given)
