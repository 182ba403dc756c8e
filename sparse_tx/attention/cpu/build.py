"""Compile the kernel at first use, and load it ever after from the cache."""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from sparse_tx.errors import UserError
from sparse_tx.folders import default_cache_dir

SOURCE = Path(__file__).with_name("kernel.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno")

_log = logging.getLogger(__name__)


class KernelError(UserError):
    """The native kernel cannot be had on this machine; the message says why and what to do."""


@cache
def load_kernel() -> ctypes.CDLL:
    """The kernel for this machine, compiled if no process has done so before.

    Compiler and further flags are those of the environment's ``CXX`` and ``CXXFLAGS``.

    Raises:
        KernelError: there is no compiler, or it fails; said again at every call.
    """
    return ctypes.CDLL(str(compile_kernel(default_cache_dir() / "kernels")))


@torch.compiler.assume_constant_result  # nothing here is for torch.compile to trace
def why_no_kernel() -> str | None:
    """Why the kernel cannot be loaded, in a sentence; None where it can."""
    return _failure()


@cache
def _failure() -> str | None:
    try:
        load_kernel()
    except KernelError as error:
        return str(error)
    return None


def compile_kernel(folder: Path) -> Path:
    """Compile into ``folder`` unless this very kernel is there; returns the library's path.

    Its name stands for the source, the compiler, the flags and the CPU.
    """
    command = [*_compiler(), *FLAGS, _native_flag(), *shlex.split(os.environ.get("CXXFLAGS", ""))]
    version = subprocess.run([command[0], "--version"], capture_output=True, check=False).stdout
    identity = b"\0".join([SOURCE.read_bytes(), version, repr(command).encode(), _cpu().encode()])
    library = folder / f"attention-{hashlib.sha256(identity).hexdigest()[:16]}.so"
    if library.exists():
        return library
    _log.info("compiling the attention kernel for this CPU, once: some ten seconds")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="unfinished-") as work:
            # Renamed when it is whole: another process may be compiling the same.
            result = Path(work) / library.name
            done = subprocess.run(
                [*command, str(SOURCE), "-o", str(result)],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            if done.returncode:
                log = library.with_suffix(".log")
                log.write_text(f"{shlex.join(done.args)}\n{done.stderr}")
                raise KernelError(
                    f"{command[0]} could not compile the native kernel (the whole of its message"
                    f" is in {log}): {_first_error(done.stderr)}; choose another compiler with"
                    " CXX=..."
                )
            os.replace(result, library)
    except OSError as error:
        raise KernelError(
            f"the native kernel cannot be written to {folder} ({error.strerror or error}); choose"
            " another cache with XDG_CACHE_HOME=..."
        ) from error
    return library


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CXX", ""))
    for name in [chosen[0]] if chosen else COMPILERS:
        if shutil.which(name):
            return chosen or [name]
    missing = f"CXX is '{chosen[0]}', which is" if chosen else f"{', '.join(COMPILERS)} are"
    raise KernelError(
        f"the native kernel needs a C++ compiler, and {missing} not on the PATH; install one (g++,"
        " say)"
    )


def _native_flag() -> str:
    return "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"


def _cpu() -> str:
    """What -march=native looks at, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _first_error(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "no message")
