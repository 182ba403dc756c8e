"""Compile a C++ file at first use, and load it ever after from the cache."""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sparse_tx.errors import UserError
from sparse_tx.files import remove_abandoned
from sparse_tx.folders import default_cache_dir

HEADERS = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno", f"-I{HEADERS}")

_UNFINISHED = "unfinished-"
_DIGEST = hashlib.sha256().digest_size

_log = logging.getLogger(__name__)


class KernelError(UserError):
    """A native kernel cannot be had on this machine; the message says why and what to do."""


@dataclass(frozen=True)
class Kernel:
    """A C++ file, which may include the headers of this folder.

    Attributes:
        name: what it is for, in a word: its library is called by it.
        source: the file.
    """

    name: str
    source: Path

    def load(self) -> ctypes.CDLL:
        """The kernel for this machine, compiled if no process has done so before.

        Compiler and further flags are those of the environment's ``CXX`` and ``CXXFLAGS``.

        Raises:
            KernelError: there is no compiler, or it fails; said again at every call.
        """
        return _load(self)

    def why_not(self) -> str | None:
        """Why it cannot be loaded, in a sentence; None where it can."""
        return _failure(self)

    def compile_into(self, folder: Path) -> Path:
        """Compile unless this very kernel is there, whole; returns the library's path.

        Its name stands for the source, the headers, the compiler, the flags and the CPU. Its last
        bytes are the SHA-256 of those before, which are the library: a damaged one would crash the
        process.

        Raises:
            KernelError: it cannot be compiled, loaded or written; the message says what to do.
        """
        command = [*_compiler(), *FLAGS, _native_flag(), *_words("CXXFLAGS")]
        library = folder / f"{self.name}-{self._identity(command)}.so"
        if _is_whole(library):
            return library
        _log.info("compiling the %s kernel for this CPU, once: some ten seconds", self.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(folder, f"{_UNFINISHED}*")
            with tempfile.TemporaryDirectory(dir=folder, prefix=_UNFINISHED) as work:
                result = Path(work) / library.name
                _compile([*command, str(self.source)], result, log=library.with_suffix(".log"))
                with open(result, "r+b") as file:
                    digest = hashlib.sha256(file.read()).digest()
                    file.write(digest)
                    os.fsync(file.fileno())
                # Renamed when it is whole: another process may be compiling the same.
                os.replace(result, library)
        except OSError as error:
            raise KernelError(
                f"the native kernel cannot be written to {folder} ({error.strerror or error});"
                " choose another cache with XDG_CACHE_HOME=..."
            ) from error
        return library

    def _identity(self, command: list[str]) -> str:
        version = [command[0], "--version"]
        try:
            compiler = subprocess.run(version, capture_output=True, check=False).stdout
        except OSError as error:
            raise KernelError(
                f"the C++ compiler {command[0]} cannot be run ({error.strerror}); choose another"
                " with CXX=..."
            ) from error
        # Where the package lies says nothing; what is in its headers does.
        flags = repr([word for word in command if str(HEADERS) not in word])
        files = [self.source, *sorted(HEADERS.glob("*.h"))]
        parts = [*(file.read_bytes() for file in files), compiler, flags.encode(), _cpu().encode()]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@cache
def _load(kernel: Kernel) -> ctypes.CDLL:
    library = kernel.compile_into(default_cache_dir() / "kernels")
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelError(f"the native kernel cannot be loaded ({error})") from error


@cache
def _failure(kernel: Kernel) -> str | None:
    try:
        kernel.load()
    except UserError as error:  # a cache folder may not be had either
        return str(error)
    return None


def _compile(command: list[str], result: Path, log: Path) -> None:
    done = subprocess.run(
        [*command, "-o", str(result)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        log.write_text(f"{shlex.join(done.args)}\n{done.stderr}")
        raise KernelError(
            f"{command[0]} could not compile the native kernel (the whole of its message is in"
            f" {log}): {_first_error(done)}; choose another compiler with CXX=..."
        )
    try:
        ctypes.CDLL(str(result))
    except OSError as error:
        raise KernelError(
            f"what {shlex.join(command)} makes of the native kernel cannot be loaded; change CXX or"
            " CXXFLAGS in the environment"
        ) from error


def _is_whole(library: Path) -> bool:
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _words(variable: str) -> list[str]:
    """The words of an environment variable, as a shell would read them."""
    text = os.environ.get(variable, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise KernelError(
            f"{variable} is {text!r} in the environment, which cannot be read: {error}"
        ) from error


def _compiler() -> list[str]:
    chosen = _words("CXX")
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


def _first_error(done: subprocess.CompletedProcess) -> str:
    if done.returncode < 0:
        return f"it was ended by signal {-done.returncode}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    # A linker says last that it failed, and before that why.
    for telling in ("No space left", "error"):
        for line in lines:
            if telling in line:
                return line
    return lines[0] if lines else "no message"
