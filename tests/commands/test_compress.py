"""compress and decompress as commands: exact, whole or not at all, one sentence for a mistake."""

import io
import os
import sys
from types import SimpleNamespace

import pytest

from sparse_tx.commands import compress, decompress
from sparse_tx.data import ByteTokenizer, CharTokenizer
from tests.commands.test_sample import make_run

DATA = bytes(range(256)) + "Größe und Maß, ".encode() * 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress") / "run"
    make_run(folder, ByteTokenizer())
    return folder


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(DATA)
    return path


def call(command, run, *arguments):
    return command.main([*map(str, arguments), "--checkpoint", str(run)])


def test_round_trip(run, file, capsys):
    assert call(compress, run, file) == 0
    packed = file.with_name("file.bin.stx")
    said = capsys.readouterr().err
    assert f"{len(DATA):,} bytes in, {packed.stat().st_size:,} out" in said
    assert f"{8 * packed.stat().st_size / len(DATA):.4f} bits per byte" in said
    assert call(decompress, run, packed, "--out", file.with_name("again")) == 0
    assert file.with_name("again").read_bytes() == DATA
    assert sorted(p.name for p in file.parent.iterdir()) == ["again", "file.bin", "file.bin.stx"]


def test_the_name_comes_back(run, file):
    assert call(compress, run, file) == 0
    file.unlink()
    assert call(decompress, run, f"{file}.stx") == 0
    assert file.read_bytes() == DATA


def test_the_engine_of_the_training_run_need_not_be_here(run, file, tmp_path):
    make_run(tmp_path / "run", ByteTokenizer(), engine="triton")
    assert call(compress, tmp_path / "run", file) == 0
    assert call(decompress, run, f"{file}.stx", "--out", file.with_name("again")) == 0
    assert file.with_name("again").read_bytes() == DATA


def test_nothing_in_nothing_out(run, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert call(compress, run, tmp_path / "empty", "--out", tmp_path / "packed") == 0
    assert call(decompress, run, tmp_path / "packed", "--out", tmp_path / "again") == 0
    assert (tmp_path / "again").read_bytes() == b""


def test_from_stdin_to_stdout(run, file, monkeypatch):
    passed = DATA
    for command in (compress, decompress):
        stdout = io.BytesIO()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(passed)))
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(flush=lambda: None, buffer=stdout))
        assert call(command, run, "-", "--out", "-") == 0
        passed = stdout.getvalue()
    assert passed == DATA


def test_what_is_there_is_not_replaced_unasked(run, file, capsys):
    packed = file.with_name("file.bin.stx")
    packed.write_text("precious")
    assert call(compress, run, file) == 2
    assert "exists; give another --out, or --overwrite" in capsys.readouterr().err
    assert packed.read_text() == "precious"
    assert call(compress, run, file, "--overwrite") == 0
    assert packed.read_bytes() != b"precious"


def test_mistakes(run, file, tmp_path, capsys):
    assert call(compress, run, file) == 0
    packed = file.with_name("file.bin.stx")
    capsys.readouterr()
    damaged, cut = tmp_path / "damaged.stx", tmp_path / "cut.stx"
    content = packed.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    cut.write_bytes(content[:-8])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    mistakes = {
        (compress, tmp_path / "none"): "cannot be read: No such file",
        (compress, tmp_path): "cannot be read: Is a directory",
        (compress, file, "--out", tmp_path / "no" / "where"): "cannot be written",
        (compress, file, "--out", tmp_path): "is not a regular file",
        (compress, "-"): "say with --out",
        (decompress, damaged): "cannot be decompressed: it is cut off or altered",
        (decompress, cut): "cannot be decompressed: it is cut off or altered",
        (decompress, file, "--out", tmp_path / "x"): "it was not written by compress",
        (decompress, file): "does not end with .stx",
    }
    for (command, *arguments), message in mistakes.items():
        assert call(command, run, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_checkpoint_is_refused(run, file, capsys):
    assert call(compress, run, file) == 0
    assert call(decompress, run, f"{file}.stx", "--out", f"{file}.out", "--which", "best") == 2
    assert "another model" in capsys.readouterr().err
    assert not os.path.exists(f"{file}.out")


def test_a_text_that_the_tokenizer_does_not_know(tmp_path, file, capsys):
    make_run(tmp_path / "run", CharTokenizer("abc é€"))
    assert call(compress, tmp_path / "run", file) == 2
    assert "cannot be compressed" in capsys.readouterr().err
