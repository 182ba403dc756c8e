import io
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from sparse_tx.checkpoint import save_checkpoint
from sparse_tx.commands import json_lines
from sparse_tx.commands.sample import main
from sparse_tx.commands.sampling_meter import note_length
from sparse_tx.config import DataConfig, ModelConfig, RunConfig, SamplingConfig, TrainingConfig
from sparse_tx.data import ByteTokenizer, CharTokenizer
from sparse_tx.errors import UserError
from sparse_tx.generation import TextRequest, generate
from sparse_tx.model import GPT

SEQ_LEN = 16


def make_run(folder, tokenizer, **settings):
    config = RunConfig(
        model=ModelConfig(
            vocab_size=tokenizer.vocab_size,
            seq_len=SEQ_LEN,
            n_layer=2,
            n_head=2,
            n_embd=8,
            pattern="local:4,strided:4",
            **settings,
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
    assert events.pop() == "flush"  # by which every command ends
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

    monkeypatch.setattr("sparse_tx.files.sync", full)
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
        (["--stop", ""], "a stop string is empty"),
        (["--repetition_penalty", 0], "repetition_penalty is 0"),
        (["--repetition_window", 0], "repetition_window is 0"),
        (["--length", "1e3"], "--length is '1e3'; it must be a whole number of tokens, or"),
        (["--length", "unlimited", "--out", "x"], "--length unlimited is for one text"),
        (["--length", "unlimited", "--num_samples", 2], "--length unlimited is for one text"),
        (["--length", "unlimited", "--jsonl"], "--length unlimited is for one text"),
        (["--prompt", "a", "--prompts", "b"], "both --prompt and --prompts are given"),
        (["--prompts", "/no/such/file"], "the file of prompts '/no/such/file' cannot be read"),
        (["--logprobs", 0], "--logprobs is for JSON Lines; add --jsonl, or give --prompts"),
        (["--logprobs", -1, "--jsonl"], "logprobs is -1"),
        (["--logprobs", 257, "--jsonl"], "logprobs is 257; the model has 256 tokens"),
        (["--batch_size", 2], "--batch_size is for JSON Lines"),
        (["--batch_size", 0, "--jsonl"], "batch_size is 0; it must be 1 or more"),
        (["--resume", "--out", "x"], "--resume is for JSON Lines"),
        (["--resume", "--jsonl"], "--resume goes on with a file; name it with --out"),
        (["--jsonl", "--out", "/dev/null"], "not a regular file"),
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
    flags = ["--num_samples", 2, "--out", "."]
    assert "the output '.' exists and is not" in refused(capsys, trained.folder, *flags)


@pytest.mark.parametrize("length", [60, 61])
def test_a_text_may_be_as_long_as_the_context(length, capsys):
    """The context is 64 tokens; the start symbol is read, and the last token is not."""
    note_length([TextRequest(prompt=torch.zeros(4, dtype=torch.long), length=length)], 64)
    assert ("more than the context of 64" in capsys.readouterr().err) == (length == 61)


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


# --- Stop strings, penalties and texts without end ----------------------------------------------


def cut_at(data, *stops):
    """What is left before the first of some stop strings that are known to be there."""
    return data[: min(data.index(stop) for stop in stops)]


def test_a_stop_string_ends_the_text_right_before_it(trained, capsys, tmp_path):
    whole = continuation(trained.model, b"a", 40, seed=6, temperature=20)
    stops = [whole[20:23], whole[9:11], b"not there"]
    flags = [part for stop in stops for part in ("--stop", os.fsdecode(stop))]
    flags += ["--prompt", "a", "--length", 40, "--seed", 6, "--temperature", 20]
    expected = b"a" + cut_at(whole, *stops[:2])
    assert sample(trained.folder, *flags) == 0
    captured = capsys.readouterr()
    assert captured.out == expected.decode(errors="replace") + "\n"
    assert "; ended at a stop string" in captured.err
    assert sample(trained.folder, *flags, "--out", tmp_path / "x") == 0
    assert (tmp_path / "x").read_bytes() == expected


def test_several_samples_end_each_on_its_own(trained, capsys):
    # Hot, so that a few bytes of one text do not stand in another.
    texts = [continuation(trained.model, b"a", 40, seed=n, temperature=20) for n in range(3)]
    stop = texts[1][12:14]
    assert stop not in texts[0] + texts[2]
    flags = ["--prompt", "a", "--length", 40, "--num_samples", 3, "--temperature", 20]
    flags += ["--stop", os.fsdecode(stop)]
    assert sample(trained.folder, *flags) == 0
    texts[1] = cut_at(texts[1], stop)
    expected = "".join(
        f"--- sample {n + 1} of 3 (seed {n}) ---\n{(b'a' + text).decode(errors='replace')}\n"
        for n, text in enumerate(texts)
    )
    captured = capsys.readouterr()
    assert captured.out == expected
    assert "; 1 of 3 texts ended at a stop string" in captured.err


def test_penalty_and_window_reach_the_sampler(trained, tmp_path):
    settings = {"repetition_penalty": 3.0, "repetition_window": 9}
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    flags += ["--prompt", "a", "--length", 40, "--out", tmp_path / "x"]
    assert sample(trained.folder, *flags) == 0
    found = (tmp_path / "x").read_bytes()
    assert found == b"a" + continuation(trained.model, b"a", 40, **settings)
    for less in ({}, {"repetition_penalty": 3.0}):
        assert found != b"a" + continuation(trained.model, b"a", 40, **less)


def test_a_text_without_end_goes_on_to_a_stop_string(trained, capsys):
    whole = continuation(trained.model, b"a", 60, temperature=20)
    flags = ["--prompt", "a", "--length", "unlimited", "--temperature", 20]
    flags += ["--stop", os.fsdecode(whole[50:54])]
    assert sample(trained.folder, *flags) == 0
    captured = capsys.readouterr()
    expected = b"a" + cut_at(whole, whole[50:54])
    assert captured.out == expected.decode(errors="replace") + "\n"
    assert "the text has no limit" in captured.err


def test_ctrl_c_ends_a_text_without_end_cleanly(trained):
    process = start(trained.folder, "unlimited", subprocess.PIPE)
    begun = process.stdout.read(100)
    process.send_signal(signal.SIGINT)
    rest, notes = process.communicate(timeout=60)
    assert process.returncode == 130
    *_, interrupted, speed = notes.decode().splitlines()
    assert interrupted == "interrupted"
    assert "tokens/s" in speed
    text = (begun + rest).decode()
    assert text.endswith("\n")
    n_tokens = int(speed.split()[0].replace(",", ""))
    # What is missing is at most the token in which it was interrupted.
    made = [
        continuation(trained.model, b"", n).decode(errors="replace").rstrip("�")
        for n in (n_tokens - 1, n_tokens)
    ]
    assert text[:-1].rstrip("�") in made


# --- JSON Lines ---------------------------------------------------------------------------------

PROMPTS = [
    {"prompt": "ab", "id": "first"},
    {"prompt": [255, 0, 3], "length": 21, "temperature": 0.5},
    {"prompt": "", "seed": 77, "logprobs": 1},
    {"prompt": "ab" * 15, "repetition_penalty": 2},
    {"prompt": "ñ", "length": 1},
]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    return path


def made_of(model, prompt, seed):
    """The bytes that a prompt's object should be continued by."""
    data = prompt["prompt"]
    data = data.encode() if isinstance(data, str) else data
    settings = {
        name: prompt[name] for name in ("temperature", "repetition_penalty") if name in prompt
    }
    return continuation(model, data, prompt.get("length", 12), seed=seed, **settings)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_many_prompts_become_one_line_for_each_sample_in_their_order(
    trained, prompts, tmp_path, capsys, batch_size
):
    out = tmp_path / "out.jsonl"
    flags = ["--prompts", prompts, "--length", 12, "--seed", 5, "--num_samples", 2]
    flags += ["--batch_size", batch_size, "--out", out]
    assert sample(trained.folder, *flags) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"10 of 10 texts are in {out}\n" in captured.err
    assert "tokens/s" in captured.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    ids = ["first", 2, 3, 4, 5]
    seeds = [5, 7, 77, 11, 13]
    assert [(line["id"], line["sample"], line["seed"]) for line in lines] == [
        (id, n, seed + n) for id, seed in zip(ids, seeds, strict=True) for n in (0, 1)
    ]
    for number, line in enumerate(lines):
        expected = made_of(trained.model, PROMPTS[number // 2], line["seed"])
        assert bytes(line["tokens"]) == expected
        assert line["text"] == expected.decode(errors="replace")
        assert line["finish_reason"] == "length"
        assert ("logprobs" in line) == (line["id"] == 3)


def test_stop_strings_and_log_probabilities_of_lines(trained, capsys):
    whole = continuation(trained.model, b"ab", 30, seed=2, temperature=20)
    flags = ["--prompt", "ab", "--length", 30, "--seed", 2, "--stop", os.fsdecode(whole[8:11])]
    assert sample(trained.folder, *flags, "--jsonl", "--logprobs", 2, "--temperature", 20) == 0
    [line] = map(json.loads, capsys.readouterr().out.splitlines())
    expected = cut_at(whole, whole[8:11])
    assert (line["id"], line["sample"], line["seed"]) == (1, 0, 2)
    assert (bytes(line["tokens"]), line["finish_reason"]) == (expected, "stop")
    assert [entry["id"] for entry in line["logprobs"]] == line["tokens"]
    prefix = [256, *b"ab"]
    for entry in line["logprobs"]:
        with torch.no_grad():
            logits = trained.model(torch.tensor([prefix]))[0, -1].double()
        logprobs = (logits - logits.exp().sum().log()).tolist()
        assert entry["logprob"] == pytest.approx(logprobs[entry["id"]], abs=1e-4)
        top = sorted(range(256), key=lambda id: -logprobs[id])[:2]
        assert [each["id"] for each in entry["top"]] == top
        assert entry["top"][0]["logprob"] == pytest.approx(max(logprobs), abs=1e-4)
        prefix.append(entry["id"])


def test_prompts_come_from_stdin_and_texts_go_to_stdout(trained, monkeypatch, capsys):
    given = b'{"prompt": "q"}\n{"prompt": "q"}\n'
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given)))
    assert sample(trained.folder, "--prompts", "-", "--length", 4) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [bytes(line["tokens"]) for line in lines] == [
        continuation(trained.model, b"q", 4, seed=seed) for seed in (0, 1)
    ]
    assert "2 of 2 texts are written\n" in captured.err


def interrupt_after(monkeypatch, n_pieces, error):
    """Let generation fail after so many pieces."""
    generate_texts = json_lines.generate_texts

    def broken(*args):
        for number, piece in enumerate(generate_texts(*args)):
            if number == n_pieces:
                raise error
            yield piece

    monkeypatch.setattr(json_lines, "generate_texts", broken)


@pytest.mark.parametrize(("n_pieces", "n_whole"), [(0, 0), (32, 0), (33, 1), (47, 1)])
def test_an_interrupted_run_keeps_what_is_whole_and_goes_on(
    trained, prompts, tmp_path, monkeypatch, capsys, n_pieces, n_whole
):
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    flags = ["--prompts", prompts, "--length", 9, "--batch_size", 4, "--seed", 1]
    assert sample(trained.folder, *flags, "--out", whole) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        interrupt_after(patch, n_pieces, KeyboardInterrupt())
        assert sample(trained.folder, *flags, "--out", out) == 130
    captured = capsys.readouterr()
    assert "interrupted\n" in captured.err
    assert f"{n_whole} of 5 texts are in {out}; --resume goes on" in captured.err
    before = out.read_bytes() if n_whole else b""
    assert before == b"".join(whole.read_bytes().splitlines(keepends=True)[:n_whole])
    assert out.exists() == (n_whole > 0)
    if n_whole:
        assert "is not empty" in refused(capsys, trained.folder, *flags, "--out", out)
        assert out.read_bytes() == before
    assert sample(trained.folder, *flags, "--out", out, "--resume") == 0
    found, expected = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (out, whole)
    )
    for line in (*found, *expected):  # the model's rounding depends on the batch
        line.pop("logprobs", None)
    assert found == expected


def test_nothing_is_done_where_all_is_there(trained, prompts, tmp_path, monkeypatch, capsys):
    flags = ["--prompts", prompts, "--length", 2, "--out", tmp_path / "out.jsonl"]
    assert sample(trained.folder, *flags) == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(GPT, "hidden", lambda *_: pytest.fail("the model was run"))
    assert sample(trained.folder, *flags, "--resume") == 0
    assert "5 of 5 texts are in" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_bytes() == before
    other = [*flags, "--seed", 1]
    assert "line 1 of the output" in refused(capsys, trained.folder, *other, "--resume")
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3 of '{}': this is not JSON"),
        ('{"prompt": "a", "lenght": 3}', "line 3 of '{}': there is no field 'lenght': did you"),
        ('{"prompt": [256]}', "line 3 of '{}': 256 in the prompt is no token id"),
        ('{"prompt": "a", "top_p": 2}', "line 3 of '{}': top_p is 2"),
    ],
)
def test_a_mistake_in_a_prompt_is_found_before_any_text_is_made(
    trained, tmp_path, monkeypatch, capsys, line, message
):
    monkeypatch.setattr(GPT, "hidden", lambda *_: pytest.fail("the model was run"))
    path, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n' + line + "\n")
    said = refused(capsys, trained.folder, "--prompts", path, "--out", out)
    assert message.replace("{}", str(path)) in said
    assert not out.exists()


def test_a_model_that_breaks_leaves_the_lines_before(
    trained, prompts, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out.jsonl"
    interrupt_after(monkeypatch, 9, UserError("the model's output is not finite"))
    flags = ["--prompts", prompts, "--length", 9, "--batch_size", 1, "--out", out]
    assert sample(trained.folder, *flags) == 2
    assert len(out.read_text().splitlines()) == 1
    assert capsys.readouterr().err.endswith(
        f"1 of 5 texts are in {out}; --resume goes on after them\n"
        "error: the model's output is not finite\n"
    )
