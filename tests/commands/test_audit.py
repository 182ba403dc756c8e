"""``sparse-tx audit``: what it prints and writes, and with which status it ends."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sparse_tx.attention import views
from sparse_tx.commands import audit as command
from sparse_tx.commands import main as console
from sparse_tx.commands.audit import main
from sparse_tx.commands.train import main as train
from sparse_tx.evaluation.audit import DecodingPath, rounds
from sparse_tx.patterns import Strided
from tests.planted_faults import SmallDecoder, engine_with_pairs, forget_the_oldest
from tests.training.helpers import TEXT


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run in it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("text.txt").write_bytes(TEXT)
        flags = ["--preset=tiny", "--data=text.txt", "--cache_dir=cache", "--device=cpu"]
        flags += ["--seq_len=37", "--pattern=local:5/strided:7,fixed:8:2", "--n_layer=3"]
        assert train([*flags, "--max_steps=3", "--eval_every=100", "--out=run"]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *flags):
    capsys.readouterr()
    try:
        status = main(["--device=cpu", *flags])
    except SystemExit as ended:  # how a parser ends on a mistake
        status = ended.code
    out, err = capsys.readouterr()
    return status, out, err


def test_a_preset(capsys):
    status, out, err = run(
        capsys, "--preset=tiny", "--engines=views,reference", "--json=new/audit.json"
    )
    assert status == 0
    assert err == "wrote new/audit.json\n"
    lines = out.splitlines()
    assert lines[0] == "model    preset tiny: local:8,strided:8, 2 layers, 2 heads, on cpu"
    assert lines[1].startswith("weights  drawn at random, because those of head.weight are zero")
    assert lines[2] == "lengths  64; for heads also 1, 2, 7, 8, 9, 61, 63"
    rows = [line.split() for line in lines if "views, reference" in line]
    assert rows == [
        ["0", "0-1", "local:8", "484", "3,612", "views,", "reference"],
        ["1", "0-1", "strided:8", "288", "3,808", "views,", "reference"],
    ]
    assert ["views", "64", "of", "64", "64", "of", "64", "2,080", "2,016"] in map(str.split, lines)
    assert any(line.split()[:4] == ["recompute", "views", "float32", "0,"] for line in lines)
    assert lines[-1] == "holds: nothing leaks, and all that is allowed is read"

    found = json.loads(Path("new/audit.json").read_text())
    assert (found["preset"], found["seed"], found["holds"]) == ("tiny", 0, True)
    assert found["drawn_because_zero"] == "head.weight"
    assert found["lengths"]["longest"] == found["heads"][0]["seq_len"] == 64
    assert found["heads"][1]["engines"] == ["views", "reference"]
    assert found["models"][0]["flips"] == 64 and found["decoders"] and found["faults"] == []


def test_a_trained_model_is_audited_as_it_is(trained, capsys):
    shutil.copytree(trained / "run", "run")
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    status, out, _ = run(capsys, "--checkpoint=run", "--engines=views", "--json=audit.json")
    assert status == 0
    assert "model    run/checkpoints/step-00000003: local:5/strided:7,fixed:8:2, 3 layers" in out
    assert "weights  as trained" in out and "lengths  37;" in out
    rows = [line.split()[:3] for line in out.splitlines() if line.endswith("  views")]
    assert rows == [
        ["0,", "2", "0"],
        ["0,", "2", "1"],
        ["1", "0", "fixed:8:2@0"],
        ["1", "1", "fixed:8:2@1"],
    ]
    found = json.loads(Path("audit.json").read_text())
    assert found["checkpoint"] == "run/checkpoints/step-00000003"
    assert found["drawn_because_zero"] is None
    assert before == {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}


def test_another_pattern_and_length(trained, capsys):
    flags = "--pattern=local:3", "--seq_len=11", "--engines=views"
    status, out, _ = run(capsys, f"--checkpoint={trained / 'run'}", *flags)
    assert status == 0
    assert "lengths  11; for heads also 1, 2, 3, 4" in out
    [row] = [line.split() for line in out.splitlines() if line.endswith("  views")]
    assert row[:3] == ["0-2", "0-1", "local:3"]
    # Three windows of 3 reach 6 back.
    assert any(line.split()[-2:] == ["56", "65"] for line in out.splitlines())


def test_engines_that_cannot_run_are_named(capsys):
    status, out, _ = run(capsys, "--preset=tiny", "--seq_len=5")
    assert status == 0
    assert "not shown: engine 'triton': " in out
    assert "not shown: engine 'flex', no gradients: gradients are asked for" in out
    status, out, _ = run(capsys, "--preset=tiny", "--seq_len=5", "--engines=auto")
    assert status == 0 and "flex" not in out and "reference" not in out


def test_sizes_beyond_every_length_are_named(capsys):
    flags = "--preset=tiny", "--pattern=local:50", "--seq_len=11", "--engines=views"
    status, out, _ = run(capsys, *flags)
    assert status == 0
    assert "not shown: what is beyond 50 tokens, sizes in the pattern that no length here" in out


def test_positions_that_are_left_out_are_named(capsys, monkeypatch):
    monkeypatch.setattr(rounds, "_FLOPS", 1)
    flags = "--preset=tiny", "--seq_len=11", "--engines=views"
    status, out, _ = run(capsys, *flags)
    assert status == 0 and "4 of 11" in out and "--thorough takes all" in out
    status, out, _ = run(capsys, *flags, "--thorough")
    assert status == 0 and "4 of 11" not in out and "takes all" not in out


def see_a_future_key(pattern, head, mask):
    if isinstance(pattern, Strided) and head == 1 and len(mask) > 21:
        mask[20, 21] = True


def test_a_leak_is_one_sentence_and_status_1(capsys, monkeypatch):
    monkeypatch.setattr(views, "attend", engine_with_pairs(see_a_future_key))
    flags = "--preset=tiny", "--engines=views,reference", "--json=audit.json"
    status, out, _ = run(capsys, *flags)
    assert status == 1
    assert "holds" not in out
    last = out.splitlines()[-1]
    assert last.startswith(
        "leak: engine 'views', layer 1, head 1, 61 positions: query 20 reads key 21, which"
        " 'strided:8' does not allow: its weight is 0."
    )
    found = json.loads(Path("audit.json").read_text())
    assert not found["holds"]
    [fault] = found["faults"]
    assert (fault["kind"], fault["path"]) == ("leak", "engine 'views'")
    assert (fault["layers"], fault["head"], fault["query"], fault["key"]) == ([1], 1, 20, 21)
    assert f"leak: {fault['sentence']}" == last
    assert [proof["engines"] for proof in found["heads"]] == [["views", "reference"], ["reference"]]


def test_a_decoder_at_fault_is_named(capsys, monkeypatch):
    def forgetful(model, room):
        return SmallDecoder(model, room, forget_the_oldest)

    paths = (*command.DECODERS, DecodingPath("forgetful", forgetful))
    monkeypatch.setattr(command, "DECODERS", paths)
    flags = "--preset=tiny", "--pattern=local:5", "--seq_len=23", "--engines=views"
    status, out, _ = run(capsys, *flags)
    assert status == 1
    assert any(line.split()[:3] == ["recompute", "views", "float32"] for line in out.splitlines())
    assert "\ngap: decoder 'forgetful' with engine 'views' in float32, 23 positions: " in out


def refused(capsys, *flags):
    before = sorted(Path(".").rglob("*"))
    status, out, err = run(capsys, *flags)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert sorted(Path(".").rglob("*")) == before
    return err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "give --checkpoint for a trained model or --preset for a new one; neither is given"),
        (["--preset=tiny", "--checkpoint=run"], "both are given"),
        (["--preset=tinny"], "unknown preset 'tinny': did you mean 'tiny'?"),
        (["--checkpoint=absent"], "the folder 'absent' does not exist"),
        (["--preset=tiny", "--pattern=lokal:4"], "did you mean 'local'?"),
        (["--preset=tiny", "--pattern=dense/dense/dense"], "2 heads cannot be split into 3"),
        (["--preset=tiny", "--seq_len=65"], "the model takes texts of 64 tokens at most"),
        (["--preset=tiny", "--seq_len=0"], "seq_len is 0; it must be 1 or more"),
        (["--preset=tiny", "--seq_len=many"], "--seq_len is 'many'; it must be a whole number"),
        (["--preset=tiny", "--engines=vews"], "unknown attention engine 'vews': did you mean"),
        (["--preset=tiny", "--engines=,"], "write all, auto, or names between commas"),
        (["--preset=tiny", "--seed=-1"], "seed is -1; it must be from 0 to 2^63 - 1"),
        (["--preset=tiny", "--json=."], "is a folder; name a file"),
        (["--preset=tiny", "--patern=dense"], "unknown flag --patern: did you mean '--pattern'?"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(flags, sentence, capsys):
    assert sentence in refused(capsys, *flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the engine can run here")
def test_an_engine_that_cannot_run_is_refused_by_name(capsys):
    said = refused(capsys, "--preset=tiny", "--engines=triton")
    assert "the attention engine 'triton' cannot run here" in said


def test_a_damaged_checkpoint(trained, capsys):
    shutil.copytree(trained / "run", "run")
    weights = Path("run/checkpoints/step-00000003/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "was altered after it was saved" in refused(capsys, "--checkpoint=run")


def test_an_interruption_writes_nothing(capsys, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "audit", interrupt)
    status, out, err = run(capsys, "--preset=tiny", "--json=new/audit.json")
    assert (status, out, err) == (130, "", "interrupted\n")
    assert list(Path(".").iterdir()) == []


def test_it_is_among_the_commands(capsys):
    assert console.main([]) == 0
    assert "audit       prove that a model sees what its patterns allow" in capsys.readouterr().out
