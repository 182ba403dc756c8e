import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from sparse_tx.checkpoint import save_checkpoint
from sparse_tx.commands.sample import main
from sparse_tx.config import DataConfig, ModelConfig, RunConfig, SamplingConfig, TrainingConfig
from sparse_tx.data import ByteTokenizer, CharTokenizer
from sparse_tx.generation import generate
from sparse_tx.model import GPT

SEQ_LEN = 16


def make_run(folder, tokenizer):
    config = RunConfig(
        model=ModelConfig(
            vocab_size=tokenizer.vocab_size,
            seq_len=SEQ_LEN,
            n_layer=2,
            n_head=2,
            n_embd=8,
            pattern="local:4,strided:4",
        ),
        data=DataConfig(tokenizer=tokenizer.kind),
        training=TrainingConfig(max_steps=5),
    )
    torch.manual_seed(1)
    model = GPT(config.model).eval()
    for parameter in model.parameters():  # zero logits would make every distribution uniform
        torch.nn.init.normal_(parameter)
    for step, valid_bpb in ((1, 2.0), (2, 3.0)):
        state = {name: tensor * step for name, tensor in model.state_dict().items()}
        save_checkpoint(
            folder,
            step=step,
            model_state=state,
            ema_state=None,
            config=config,
            tokenizer=tokenizer,
            training_state={},
            keep_last=2,
            valid_bpb=valid_bpb,
        )
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory and the model of its latest checkpoint."""
    folder = tmp_path_factory.mktemp("sample") / "run"
    return SimpleNamespace(folder=folder, model=make_run(folder, ByteTokenizer()))


@pytest.fixture(scope="module")
def chars(tmp_path_factory):
    """A run directory whose tokenizer knows six characters, some of several bytes."""
    folder = tmp_path_factory.mktemp("chars") / "run"
    make_run(folder, CharTokenizer("abc é€"))
    return folder


def continuation(model, prompt, length, seed=0, **settings):
    """What the command should make, as bytes, from the library's parts."""
    steps = generate(
        model, list(prompt), length=length, settings=SamplingConfig(**settings), seed=seed
    )
    return bytes(token.item() for token in steps)


def sample(run, *flags):
    return main(["--checkpoint", str(run), "--device", "cpu", *map(str, flags)])


def refused(capsys, run, *flags):
    """The one sentence that answers a mistake."""
    try:
        status = sample(run, *flags)
    except SystemExit as exit:  # the parser's own
        status = exit.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_one_sample_is_the_prompt_and_what_the_model_makes_of_it(trained, capsys):
    assert sample(trained.folder, "--prompt", "añ", "--length", 30, "--seed", 4) == 0
    captured = capsys.readouterr()
    whole = "añ".encode() + continuation(trained.model, "añ".encode(), 30, seed=4)
    assert captured.out == whole.decode(errors="replace") + "\n"
    assert "step-00000002, cpu, seed 4" in captured.err
    assert "prompt and continuation have 33 tokens, more than the context of 16" in captured.err
    assert "tokens/s" in captured.err


def test_every_setting_reaches_the_sampler(trained, capsys, tmp_path):
    settings = {"temperature": 1.5, "top_k": 40, "top_p": 0.8, "min_p": 0.02}
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    plain = continuation(trained.model, b"a", 40)
    assert (
        sample(trained.folder, "--prompt", "a", "--length", 40, *flags, "--out", tmp_path / "x")
        == 0
    )
    found = (tmp_path / "x").read_bytes()
    assert found == b"a" + continuation(trained.model, b"a", 40, **settings)
    assert found != b"a" + plain


def test_text_streams_token_by_token_and_never_half_a_character(chars, monkeypatch):
    events = []

    class Terminal(io.StringIO):
        def write(self, text):
            events.append(text)

        def flush(self):
            events.append("flush")

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert sample(chars, "--prompt", "é", "--length", 9) == 0
    assert events[1::2] == ["flush"] * 11
    prompt, *made, end = events[::2]
    assert (prompt, end) == ("é", "\n")
    assert len(made) == 9
    assert set("".join(made)) <= set("abc é€")
    assert all(len(text) == 1 for text in made)


def test_an_empty_prompt_is_fine(trained, capsys):
    assert sample(trained.folder, "--length", 5) == 0
    expected = continuation(trained.model, b"", 5).decode(errors="replace") + "\n"
    assert capsys.readouterr().out == expected


def test_several_samples_come_one_after_another(trained, capsys):
    assert (
        sample(trained.folder, "--prompt", "a", "--length", 8, "--num_samples", 3, "--seed", 5) == 0
    )
    expected = ""
    for n in range(3):
        text = b"a" + continuation(trained.model, b"a", 8, seed=5 + n)
        expected += f"--- sample {n + 1} of 3 (seed {5 + n}) ---\n{text.decode(errors='replace')}\n"
    assert capsys.readouterr().out == expected


def test_which_chooses_the_checkpoint(trained, capsys):
    assert sample(trained.folder, "--length", 5, "--which", "best") == 0
    assert "step-00000001, cpu" in capsys.readouterr().err
    assert sample(trained.folder / "checkpoints" / "step-00000001", "--length", 5) == 0
    assert "step-00000001, cpu" in capsys.readouterr().err


def test_prompts_from_files_and_stdin_are_raw_bytes(trained, tmp_path, monkeypatch, capsys):
    prompt = b"\xff\x00\r\na"
    (tmp_path / "prompt").write_bytes(prompt)
    out = tmp_path / "out.bin"
    expected = prompt + continuation(trained.model, prompt, 6)
    flags = ["--length", 6, "--out", out]
    assert sample(trained.folder, "--prompt_file", tmp_path / "prompt", *flags) == 0
    assert out.read_bytes() == expected
    out.unlink()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(prompt)))
    assert sample(trained.folder, "--prompt_file", "-", *flags) == 0
    assert out.read_bytes() == expected
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("prompt", ["1", "null", "-x", "[1, 2", "{a: b}", "a b", "$x\n"])
def test_no_prompt_is_taken_for_a_value_of_another_kind(trained, tmp_path, prompt):
    out = tmp_path / "out"
    assert sample(trained.folder, f"--prompt={prompt}", "--length", 1, "--out", out) == 0
    assert out.read_bytes()[:-1] == prompt.encode()


def test_several_samples_get_several_files(trained, tmp_path, capsys):
    out = tmp_path / "a.b.txt"
    assert (
        sample(trained.folder, "--prompt", "q", "--length", 4, "--num_samples", 2, "--out", out)
        == 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b-1.txt", "a.b-2.txt"]
    for n in range(2):
        expected = b"q" + continuation(trained.model, b"q", 4, seed=n)
        assert (tmp_path / f"a.b-{n + 1}.txt").read_bytes() == expected


def test_an_output_that_fails_leaves_the_old_file(trained, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.write_bytes(b"old")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparse_tx.checkpoint.files.sync", full)
    assert sample(trained.folder, "--length", 2, "--out", out) == 2
    assert "cannot be written: No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "a", "--prompt_file", "b"], "both --prompt and --prompt_file are given"),
        (["--prompt_file", "/no/such/file"], "the prompt file '/no/such/file' cannot be read"),
        (["--length", 0], "length is 0; it must be 1 or more"),
        (["--length", "many"], "length"),
        (["--num_samples", 0], "num_samples is 0"),
        (["--seed", -1], "seed is -1"),
        (["--temperature", -0.5], "temperature is -0.5"),
        (["--temperature", "nan"], "temperature"),
        (["--temperature", "1e999"], "temperature"),
        (["--top_k", 0], "top_k is 0"),
        (["--top_p", 1.5], "top_p is 1.5"),
        (["--min_p", 0], "min_p is 0"),
        (["--out", "/no/such/folder/file"], "the output '/no/such/folder/file' cannot be written"),
        (["--out", "/dev/null"], "not a regular file"),
        (["--which", "first"], "which"),
        (["--lenght", 3], "did you mean '--length'?"),
    ],
)
def test_mistakes_get_one_sentence_before_anything_is_made(
    trained, capsys, monkeypatch, flags, message
):
    monkeypatch.setattr(GPT, "hidden", lambda *_: pytest.fail("the model was run"))
    assert message in refused(capsys, trained.folder, *flags)


def test_no_checkpoint_is_a_mistake(tmp_path, capsys):
    assert "does not exist" in refused(capsys, tmp_path / "nowhere")
    assert "there is no checkpoint in" in refused(capsys, tmp_path)


def test_a_prompt_that_the_tokenizer_does_not_know_is_a_mistake(chars, capsys):
    assert "'z' (U+007A) at byte 2" in refused(capsys, chars, "--prompt", "abz")


def test_cuda_where_there_is_none_is_a_mistake(trained, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(capsys, trained.folder, "--device", "cuda")
    assert "torch finds no CUDA device here; use --device cpu" in message
    assert main(["--checkpoint", str(trained.folder), "--length", "1", "--device", "auto"]) == 0


def test_a_folder_as_output_is_a_mistake(trained, capsys, tmp_path):
    assert "not a regular file" in refused(capsys, trained.folder, "--out", tmp_path)
    (tmp_path / "x-2").mkdir()
    flags = ["--num_samples", 2, "--out", tmp_path / "x"]
    assert "x-2' exists and is not" in refused(capsys, trained.folder, *flags)


def test_help_states_what_happens_past_the_context(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    assert "its oldest half is dropped" in " ".join(capsys.readouterr().out.split())


def start(run, length, stdout):
    """The command as a process of its own."""
    command = "import sys; from sparse_tx.commands.sample import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", command, "--checkpoint", run, "--length", length, "--device", "cpu"],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_reader_that_leaves_ends_it_quietly(trained):
    process = start(trained.folder, "100000", subprocess.PIPE)
    assert process.stdout.read(3)
    process.stdout.close()
    notes = process.communicate(timeout=60)[1].decode().splitlines()
    assert process.returncode == 0
    assert len(notes) == 2  # which checkpoint, and the length of the context


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_behind_stdout_gets_one_sentence(trained):
    with open("/dev/full", "wb") as full:
        process = start(trained.folder, "1", full)
        notes = process.communicate(timeout=60)[1].decode().splitlines()
    assert process.returncode == 2
    assert notes[1:] == ["error: standard output cannot be written: No space left on device"]


def test_an_ill_typed_flag_gets_a_sentence(trained, capsys):
    said = refused(capsys, trained.folder, "--top_p", "abc")
    assert "--top_p is 'abc'; it must be a number or null" in said


def test_help_names_the_command(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/sparse-tx"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: sparse-tx sample ")
