"""Kernels that cannot be compiled, loaded or kept."""

import hashlib
from pathlib import Path

import pytest

from sparse_tx.attention.cpu.library import KERNEL
from sparse_tx.errors import UserError
from sparse_tx.native import KernelError, build


def test_a_kernel_that_does_not_compile(tmp_path, monkeypatch):
    monkeypatch.setenv("CXXFLAGS", "-DT=")
    with pytest.raises(KernelError, match=r"could not compile.*\.log.*error"):
        KERNEL.compile_into(tmp_path)
    (log,) = tmp_path.iterdir()
    assert "-DT=" in log.read_text()


def test_a_machine_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="needs a C"):
        KERNEL.compile_into(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("CXX", "/nowhere/g++ -pipe")
    with pytest.raises(UserError, match="CXX is '/nowhere/g"):
        KERNEL.compile_into(tmp_path / "cache")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CXX", "c++ 'x", "CXX is .* cannot be read"),
        ("CXXFLAGS", "'", "CXXFLAGS is .* cannot be read"),
        ("CXXFLAGS", "-c -O0", "cannot be loaded; change CXX or CXXFLAGS"),
        ("CXX", "true", "cannot be loaded; change CXX or CXXFLAGS"),
    ],
)
def test_an_environment_that_compiles_no_library(variable, value, message, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(KernelError, match=message):
        KERNEL.compile_into(tmp_path)
    assert not list(tmp_path.glob("*.so"))


def test_a_compiler_that_is_no_program(tmp_path, monkeypatch):
    compiler = tmp_path / "c++"
    compiler.write_bytes(b"\0")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(KernelError, match="cannot be run"):
        KERNEL.compile_into(tmp_path)


def test_a_damaged_kernel_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("CXXFLAGS", "-O0")
    library = KERNEL.compile_into(tmp_path)
    whole = library.read_bytes()
    for damaged in (b"", whole[:60_000], whole[:4096] + bytes(4096) + whole[8192:]):
        library.unlink()  # the whole one may be mapped
        library.write_bytes(damaged)
        assert KERNEL.compile_into(tmp_path) == library
        assert hashlib.sha256(library.read_bytes()[:-32]).digest() == library.read_bytes()[-32:]


def test_no_home_for_the_kernel(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    build._failure.cache_clear()
    build._load.cache_clear()
    assert "XDG_CACHE_HOME" in KERNEL.why_not()
    build._failure.cache_clear()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        KERNEL.compile_into(tmp_path / "file" / "kernels")
