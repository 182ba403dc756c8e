"""The train command as a person uses it, mistakes included."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from sparse_tx import load_checkpoint
from sparse_tx.commands import main as console
from sparse_tx.commands.train import main
from sparse_tx.model import GPT
from tests.training.helpers import TEXT

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_bytes(TEXT)


def flags(out="out", **settings):
    defaults = dict(
        preset="tiny", data="text.txt", cache_dir="cache", max_steps=6, save_every=3, eval_every=4
    )
    given = defaults | settings | {"out": out}
    return [f"--{name}={value}" for name, value in given.items()]


def losses(out="out"):
    lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
    return [(json.loads(line)["step"], json.loads(line)["train_bpb"]) for line in lines]


def test_a_run_from_nothing_to_a_model(capsys):
    assert main(flags()) == 0
    said = capsys.readouterr().out
    assert "pattern local:8,strided:8 by engine cpu" in said
    assert "bits per byte on validation" in said
    assert [step for step, _ in losses()] == [1, 2, 3, 4, 5, 6]
    assert yaml.safe_load(Path("out/config.yaml").read_text())["max_steps"] == 6
    assert list(Path("out/events").iterdir())
    model, tokenizer, config = load_checkpoint("out")
    assert config.model.pattern == "local:8,strided:8"
    assert model(torch.from_numpy(tokenizer.encode(b"2 times").astype("int64"))[None]).shape == (
        1,
        7,
        256,
    )


def test_precedence_of_settings(tmp_path):
    Path("mine.yaml").write_text("n_embd: 48\nlr: 0.5\n")
    # The file stands last on the command line, and flags still win over it.
    assert main([*flags(lr=0.25), "--config", "mine.yaml"]) == 0
    settings = yaml.safe_load(Path("out/config.yaml").read_text())
    assert (settings["n_layer"], settings["n_embd"], settings["lr"]) == (2, 48, 0.25)
    assert settings["betas"] == [0.9, 0.95]


def test_a_pipe_of_settings_says_as_little_of_where_a_run_goes(capsys):
    os.mkfifo("settings")
    writer = threading.Thread(target=Path("settings").write_text, args=("out: elsewhere\n",))
    writer.start()
    rest = [flag for flag in flags() if not flag.startswith("--out=")]
    assert main([*rest, "--config=settings"]) == 2
    writer.join()
    assert "sets 'out', which is no setting of a run" in capsys.readouterr().err
    assert not Path("out").exists() and not Path("elsewhere").exists()


def test_a_file_may_name_the_weights_to_begin_with():
    assert main(flags(n_embd=48, lr=0.25)) == 0
    Path("next.yaml").write_text("init_from: out\n")
    assert main(["--config=next.yaml", "--out=next"]) == 0
    settings = yaml.safe_load(Path("next/config.yaml").read_text())
    assert (settings["n_embd"], settings["lr"], settings["init_from"]) == (48, 0.25, "out")


def test_print_config(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--preset", "tiny", "--print_config"])
    assert ended.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["seq_len"] == 64
    assert not Path("out").exists()


def test_resume_continues_and_refuses_what_would_be_another_run(capsys):
    assert main(flags("whole", max_steps=9)) == 0
    assert main(flags("parts", max_steps=9, keep_last=9)) == 0
    for step in (4, 6, 8, 9):
        for file in Path(f"parts/checkpoints/step-{step:08}").iterdir():
            file.unlink()
        Path(f"parts/checkpoints/step-{step:08}").rmdir()
    capsys.readouterr()
    assert main(["--out=parts", "--resume"]) == 0
    assert "resumed after step 3" in capsys.readouterr().out
    assert losses("parts") == losses("whole")
    assert main(["--out=parts", "--resume"]) == 2
    assert "is complete after 9 steps; give a larger --max_steps" in capsys.readouterr().err
    assert main(["--out=parts", "--resume", "--n_layer=3", "--max_steps=12"]) == 2
    assert "cannot be resumed with n_layer 3 (it is 2 there)" in capsys.readouterr().err
    assert main(["--out=parts", "--resume", "--max_steps=12", "--lr=0.001"]) == 0
    rates = [
        json.loads(line)["lr"] for line in Path("parts/metrics.jsonl").read_text().splitlines()
    ]
    assert rates[8] < 0.003
    assert rates[9] < 0.001


def test_what_memory_has_no_room_for_is_refused_before_anything_is_written(capsys, monkeypatch):
    monkeypatch.setattr("sparse_tx.profiler.step_room.free_bytes", lambda device: 1_000_000)
    assert main(flags()) == 2
    said = capsys.readouterr().err
    assert "a training step takes 0.00" in said
    assert "0.001 GB of memory are free on the device cpu" in said
    assert not Path("out").exists()
    assert main([*flags(max_steps=2), "--ignore_memory"]) == 0
    assert "ignore_memory" not in Path("out/config.yaml").read_text()


def test_a_run_may_go_on_in_less_memory():
    assert main(flags("whole", max_steps=9)) == 0
    assert main(flags(max_steps=3)) == 0
    again = ["--head_chunk=1", "--stored_precision=bf16", "--chunk=50", "--recompute=true"]
    assert main(["--out=out", "--resume", "--max_steps=9", *again]) == 0
    settings = yaml.safe_load(Path("out/checkpoints/step-00000009/config.yaml").read_text())
    assert (settings["head_chunk"], settings["stored_precision"]) == (1, "bf16")
    assert losses()[-1][1] == pytest.approx(losses("whole")[-1][1], rel=0.05)


def test_a_run_that_got_nowhere_can_be_resumed(capsys):
    assert main(["--resume"]) == 2
    assert "'out'" in capsys.readouterr().err
    main(flags("whole", keep_last=9))
    main(flags(keep_last=9))
    for file in Path("out/checkpoints").glob("step-*/*"):
        if "step-00000000" not in str(file):
            file.unlink()
    for folder in Path("out/checkpoints").glob("step-*"):
        if "step-00000000" not in str(folder):
            folder.rmdir()
    assert main(["--out=out", "--resume"]) == 0
    assert losses() == losses("whole")


def test_overwrite_touches_no_folder_that_never_held_a_run():
    Path("mine/checkpoints").mkdir(parents=True)
    Path("mine/checkpoints/precious").write_text("x")
    assert main([*flags("mine"), "--overwrite"]) == 0
    assert Path("mine/checkpoints/precious").read_text() == "x"


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_configuration_of_another_program_is_left_alone(more, capsys):
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("hydra: {run: {dir: .}}\n")
    assert main([*flags("mine"), *more]) == 2
    assert "mine has a config.yaml that is not of a run; name another" in capsys.readouterr().err
    assert [path.name for path in Path("mine").iterdir()] == ["config.yaml"]


def test_overwrite_removes_what_runs_write_and_nothing_else():
    assert main(flags()) == 0
    mine = [Path("out") / name for name in ("checkpoints/last.ckpt", "events/notes", "notes")]
    for path in mine:
        path.write_text("mine")
    Path("out/checkpoints/.tmp-step-00000007").mkdir()
    assert main([*flags(max_steps=2, eval_every=9), "--overwrite"]) == 0
    assert all(path.read_text() == "mine" for path in mine)
    kept = {path.name for path in Path("out/checkpoints").iterdir()}
    assert kept == {"last.ckpt", "best.json", "step-00000000", "step-00000002"}
    assert len(list(Path("out/events").iterdir())) == 2


def test_two_processes_do_not_train_in_one_folder(capsys):
    fcntl = pytest.importorskip("fcntl")
    assert main(flags()) == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    with open("out/.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for more in (["--resume", "--max_steps=9"], ["--overwrite"]):
            given = flags() if more == ["--overwrite"] else ["--out=out"]
            assert main([*given, *more]) == 2
            assert "another process is training in out; wait" in capsys.readouterr().err
    os.unlink("out/.lock")
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    assert main(["--out=out", "--resume", "--max_steps=9"]) == 0
    assert not Path("out/.lock").exists()


def test_preparing_may_take_all_the_time_there_is(capsys):
    assert main([*flags(), "--max_steps=null", "--max_minutes=1e-9"]) == 2
    assert "were over before the first step, as preparing took" in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_pattern_is_shown_as_it_is(capsys):
    assert main(flags(pattern="fixed:100:25", max_steps=1)) == 0
    assert "pattern fixed:100:25 by engine" in capsys.readouterr().out


def test_an_occupied_folder_is_left_alone():
    assert main(flags()) == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert main(flags(seed=2)) == 2
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    first = losses()
    assert main([*flags(seed=2), "--overwrite"]) == 0
    assert losses() != first
    assert main([*flags(), "--overwrite", "--resume"]) == 2


@pytest.mark.parametrize("more", [["--resume"], ["--overwrite"], []])
@pytest.mark.parametrize("inside", [False, True])
def test_a_checkpoint_is_no_run_folder(more, inside, capsys, monkeypatch):
    assert main(flags()) == 0
    root = Path("out").resolve()
    before = {path: path.is_file() and path.read_bytes() for path in root.rglob("*")}
    path = Path("out/checkpoints/step-00000006")
    if inside:
        monkeypatch.chdir(path)
        path = Path(".")
    capsys.readouterr()
    begin = flags(path, data=root.parent / "text.txt") if more != ["--resume"] else []
    assert main([*begin, f"--out={path}", *more]) == 2
    said = capsys.readouterr().err
    folder = root if inside else "out"
    assert f"is a checkpoint of a run; give the run's folder, '{folder}'\n" in said
    assert {path: path.is_file() and path.read_bytes() for path in root.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preset=tinny"], "unknown preset 'tinny': did you mean 'tiny'?"),
        (["--sequence_len=5"], "unknown flag --sequence_len: did you mean '--seq_len'?"),
        (["--n_layer=two"], "--n_layer is 'two'; it must be a whole number"),
        (["--lr=fast"], "--lr is 'fast'; it must be a number"),
        (["--max_steps=abc"], "--max_steps is 'abc'; it must be a whole number or null"),
        (["--n_ff=abc"], "--n_ff is 'abc'; it must be a whole number or null"),
        (["--max_minutes=nan"], "--max_minutes is 'nan'; it must be a number or null"),
        (["--seed=99999999999999999999999"], "it must be below 2^63"),
        (["--split=90,5,6"], "the split is 90, 5, 6"),
        (["--split", "90,5"], "it must be numbers between commas, such as 90,5,5"),
        (["--position_shape", "4,4"], "position_shape 4x4 has 16 cells"),
        (["--betas", ".9,1.5"], "betas is (0.9, 1.5)"),
        (["--config=absent.yaml"], "--config absent.yaml does not exist; give a YAML file"),
        (["--config", "latin.yaml"], "--config latin.yaml is not UTF-8 text (byte 5)"),
        (["--config", "own.yaml"], "sets 'out', which is no setting of a run; take it out"),
        (["--config", "again.yaml"], "sets 'resume', which is no setting of a run"),
        (["--bias=maybe"], "--bias is 'maybe'; it must be true or false"),
        (["--n_layer=0"], "n_layer is 0; it must be 1 or more"),
        (["--pattern=lokal:4"], "unknown word 'lokal'"),
        (["--pattern=local:-4"], "it must be a whole number of positions, 1 or more"),
        (["--pattern=fixed:8:9"], "wider than its block"),
        (["--pattern=dense/dense/dense"], "2 heads cannot be split into 3 equal groups"),
        (["--engine=fast"], "unknown attention engine 'fast'"),
        (["--position=left"], "it must be one of grid, table, rope, grid+rope, none"),
        (["--seq_len=100000"], "a window of seq_len 100,000 tokens does not fit into a split of"),
        (["--data=absent.txt"], "absent.txt"),
        (["--split=[90,5,6]"], "split"),
        (["--split=[95,0,5]"], "the validation split of 'text.txt' is empty"),
        (["--tokenizer=word"], "tokenizer"),
        (["--config=absent.yaml"], "absent.yaml"),
        (["--out=text.txt"], "text.txt"),
        (["--out="], "--out is empty; name a folder"),
        (["--max_steps=0"], "max_steps is 0"),
        (["stray"], "unexpected argument 'stray'"),
        (["--preset"], "preset"),
        (["--out", "--resume"], "out"),
        (["--resume=true"], "resume"),
        (["--resume", "--preset=tiny"], "leave --preset out"),
        *([] if torch.cuda.is_available() else [(["--device=cuda"], "no CUDA device")]),
    ],
)
def test_mistakes_get_a_sentence_and_write_nothing(arguments, sentence, capsys):
    Path("latin.yaml").write_bytes(b"data: \xe9\n"[1:])
    Path("own.yaml").write_text("n_embd: 48\nout: elsewhere\n")
    Path("again.yaml").write_text("resume: true\n")
    try:
        status = main([*flags(), *arguments])
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err
    assert status == 2
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
    assert said.startswith("error: ")
    assert not Path("out").exists()


def test_damaged_input_gets_a_sentence(capsys):
    Path("empty.txt").write_bytes(b"")
    Path("not.gz").write_bytes(b"plain text, whatever its name says")
    for name in ("empty.txt", "not.gz"):
        assert main(flags(data=name)) == 2
        assert name in capsys.readouterr().err


def test_a_changed_checkpoint_is_not_resumed(capsys):
    assert main(flags()) == 0
    weights = Path("out/checkpoints/step-00000006/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["--out=out", "--resume", "--max_steps=9"]) == 2
    said = capsys.readouterr().err
    assert "model.safetensors" in said
    folder = "'out/checkpoints/step-00000006'"
    assert f"remove the damaged folder {folder}, and --resume goes on from step 4" in said
    shutil.rmtree(weights.parent)
    assert main(["--out=out", "--resume", "--max_steps=7"]) == 0
    assert "resumed after step 4" in capsys.readouterr().out


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, ROOT / "train_lm.py", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_to_the_end(*arguments):
    process = start(*arguments)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said


def wait_for_step(process, step, out="out"):
    path = Path(out) / "metrics.jsonl"
    for _ in range(6000):
        if path.exists() and len(path.read_text().splitlines()) >= step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError("the run does not move")


def test_training_goes_on_when_nobody_reads_any_more():
    process = start(*flags(max_steps=20, save_every=20, log_every=1))
    assert process.stdout.readline().startswith("model ")
    process.stdout.close()
    assert process.wait(timeout=300) == 0
    assert len(losses()) == 20
    assert Path("out/checkpoints/step-00000020").is_dir()


@pytest.mark.parametrize(
    ("kill", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
def test_an_ended_process_resumes_bit_exactly(kill, status):
    long = dict(max_steps=40, eval_every=100, sample_length=0)
    run_to_the_end(*flags("whole", **long))
    broken = start(*flags(**long))
    wait_for_step(broken, 8)
    broken.send_signal(kill)
    said = broken.communicate(timeout=300)[0]
    assert broken.returncode == status
    if kill != signal.SIGKILL:
        assert "to go on: python train_lm.py --out out --resume" in said
    run_to_the_end("--out=out", "--resume")
    assert losses("out") == losses("whole")
    assert len(losses()) == 40


def test_the_console_command(capsys):
    assert console.main([]) == 0
    assert "train a model" in capsys.readouterr().out
    assert console.main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    assert console.main(["train", *flags()]) == 0


def spoil_losses(monkeypatch, steps):
    """Let the losses of these steps, counted from 1, be no number."""
    losses, taken = GPT.loss, []

    def spoiled(self, tokens, targets):
        total = losses(self, tokens, targets)
        if self.training:
            taken.append(len(taken) + 1)
        return total * float("nan") if self.training and taken[-1] in steps else total

    monkeypatch.setattr(GPT, "loss", spoiled)


def test_skipped_steps_are_shown(capsys, monkeypatch):
    monkeypatch.setattr("sparse_tx.commands.training_display._SECONDS_BETWEEN_LINES", -1)
    spoil_losses(monkeypatch, {3, 5})
    assert main(flags(max_steps=7, eval_every=100)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "min left" in line]
    for step, line in enumerate(lines, start=1):
        assert f"step {step}  " in line
        assert (re.search(r"(\d) skipped", line) or [0, "0"])[1] == str((step > 2) + (step > 4))
        assert ("bits/byte" in line) == (step not in (3, 5))  # a line of the log for each step
    assert len(lines) == 6


def test_too_many_bad_steps_end_a_run(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        spoil_losses(patch, {4, 5, 6})
        assert main(flags(max_steps=9, max_bad_steps=3)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: step 6: training stopped, as 3 bad steps came in a row")
    assert "resume with a lower --lr (it is 0.003) from the last good checkpoint" in said
    assert len(said.strip().splitlines()) == 1
    assert main(["--out=out", "--resume", "--max_bad_steps=5", "--spike=null"]) == 0
