"""The command as a process: what it says, what it refuses, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from sparse_tx.accounting import cache_bytes
from sparse_tx.commands import serve
from sparse_tx.commands.serve import main
from tests.serving.conftest import WAIT_S, make_model, save_run

COMMAND = "import sys; from sparse_tx.commands.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory of two checkpoints, of which the earlier is the better."""
    folder = tmp_path_factory.mktemp("serve") / "my-run"
    for step, valid_bpb in ((1, 2.0), (2, 3.0)):
        save_run(folder, make_model(), step=step, valid_bpb=valid_bpb)
    return folder


@contextmanager
def serving(run, *flags):
    """The command as a process, once it says that it serves; its address and what it said."""
    command = [sys.executable, "-c", COMMAND, "serve", "--checkpoint", str(run), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    ) as process:  # fmt: skip
        said = []
        try:
            for line in process.stderr:
                said.append(line)
                if where := re.match(r"serving +(\S+)", line):
                    yield process, where[1], said
                    break
            else:
                pytest.fail("".join(said))
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def ask(address, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(address + path, data), timeout=WAIT_S) as answer:
        return json.load(answer)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal(run, end):
    with serving(run) as (process, address, said):
        assert address.startswith("http://127.0.0.1:")
        assert "step 2" in said[0] and said[1].startswith("decoder")
        assert ask(address, "/about")["model"] == "my-run"
        made = ask(address, "/v1/completions", {"model": "my-run", "prompt": "a", "max_tokens": 3})
        assert made["usage"]["completion_tokens"] == 3
        process.send_signal(end)
        out, err = process.communicate(timeout=WAIT_S)
        assert (process.returncode, out, err) == (0, "", "ended\n")


def test_a_signal_in_the_middle_of_a_stream(run):
    with serving(run, "--max_tokens_limit", "100000000") as (process, address, _):
        body = json.dumps({"prompt": "a", "max_tokens": 10**8, "stream": True}).encode()
        with urlopen(Request(f"{address}/v1/completions", body), timeout=WAIT_S) as answer:
            assert answer.readline().startswith(b"data: {")
            process.send_signal(signal.SIGINT)
            rest = answer.read()
        assert b"the server is shutting down" in rest and b"[DONE]" not in rest
        assert process.wait(WAIT_S) == 0


def test_the_best_checkpoint_and_another_host(run):
    flags = ("--which", "best", "--host", "0.0.0.0", "--max_prompt_bytes", "10")
    with serving(run, *flags) as (_, address, said):
        address = address.replace("0.0.0.0", "127.0.0.1")
        about = ask(address, "/about")
        assert (about["step"], about["max_prompt_bytes"]) == (1, 10)
        assert any(line.startswith("warning: 0.0.0.0 can be reached from") for line in said)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--checkpoint", "nowhere"], "the folder 'nowhere' does not exist; give a run"),
        (["--max_concurrent", "0"], "max_concurrent is 0; it must be 1 or more"),
        (["--max_waiting", "-1"], "max_waiting is -1; it must be 0 or more"),
        (["--max_prompt_bytes", "0"], "max_prompt_bytes is 0"),
        (["--max_tokens_limit", "few"], "--max_tokens_limit is 'few'; it must be a whole number"),
        (["--port", "70000"], "port is 70000; it must be from 0"),
        (["--host", "203.0.113.7"], "cannot listen at port 8000 of '203.0.113.7'"),
        (["--host", "a" * 64], "cannot listen at port 8000 of 'aaa"),
        (["--engine", "magic"], "unknown attention engine 'magic'"),
        (["--prot", "1"], "unknown flag --prot: did you mean '--port'?"),
    ],
)
def test_mistakes(run, flags, sentence, capsys):
    flags = flags if "--checkpoint" in flags else ["--checkpoint", str(run), *flags]
    try:
        status = main(flags)
    except SystemExit as left:
        status = left.code
    error = capsys.readouterr().err
    assert status == 2 and sentence in error and error.count("\n") == 1


def test_a_port_that_is_taken(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["--checkpoint", str(run), "--port", str(port)]) == 2
    assert f"cannot listen at port {port} of '127.0.0.1'" in capsys.readouterr().err


def test_texts_that_no_memory_holds(run, capsys, monkeypatch):
    monkeypatch.setattr(serve, "free_bytes", lambda device: 10**6)
    assert main(["--checkpoint", str(run), "--port", "0", "--max_concurrent", "10000"]) == 2
    error = capsys.readouterr().err
    fits = int(re.search(r"--max_concurrent (\d+) fits", error)[1])
    model = make_model()

    def needed(texts):
        return cache_bytes(model.config, batch=texts).allocated.total

    assert needed(fits) <= 10**6 < needed(fits + 1)
    monkeypatch.setattr(serve, "free_bytes", lambda device: 1)
    assert main(["--checkpoint", str(run), "--port", "0"]) == 2
    assert "--max_prompt_bytes and --max_tokens_limit make texts shorter" in capsys.readouterr().err


def test_without_its_libraries(run, capsys, monkeypatch):
    real = __import__

    def without(name, *args, **kwargs):
        if name == "sparse_tx.serving":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return real(name, *args, **kwargs)

    monkeypatch.setattr("builtins.__import__", without)
    assert main(["--checkpoint", str(run), "--port", "0"]) == 2
    assert "pip install 'sparse_tx[serve]'" in capsys.readouterr().err
