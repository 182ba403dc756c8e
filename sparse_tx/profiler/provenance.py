"""What has to stand beside a figure for it to mean something later."""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGE = Path(__file__).parents[1]
# What decides how long the work takes and what it holds.
_COSTLY = (
    "patterns",
    "config",
    "native",
    "attention",
    "cache",
    "model",
    "generation",
    "training",
    "profiler/works.py",
)


def provenance(*further_packages: str) -> dict:
    """The commit, the command, the versions and the machine of this run, as JSON holds them.

    Args:
        further_packages: whose versions matter too, if they are installed.

    Returns:
        ``commit`` and ``changed_files`` are None unless the package lies in its own git clone. In
        ``command``, paths that start at the root, or above the folder that it ran in, are cut down
        to their last part: where things lie on a machine is nobody else's affair.
    """
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "-uno")
    return {
        "commit": commit,
        "changed_files": None if changed is None else changed.splitlines(),
        "command": _command(sys.argv),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": _versions("sparse_tx", "torch", "numpy", "triton", *further_packages),
        "machine": {
            "processor": processor(),
            "vectors": vector_instructions(),
            "cores": core_count(),
            "threads": torch.get_num_threads(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def measured_on(device: str) -> dict[str, str | int | None]:
    """What two measurements must share for one to stand in for the other.

    It is the processor and its vectors, or the GPU on ``cuda``; the threads; the version of torch;
    and a digest of the package's code that is measured.
    """
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "vectors": None if device == "cuda" else vector_instructions(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "code": _digest_of_code(),
    }


def processor() -> str:
    """The name of the machine's processor, as the system has it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def vector_instructions() -> str | None:
    """The widest of AVX-512, AVX2 and AVX that a processor has; None if none, or not known.

    Processors of one name may differ in it, and with it their matrix products by a factor of two.
    """
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                flags = line.split()
                names = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX"}
                return next((name for flag, name in names.items() if flag in flags), None)
    return None


def core_count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _command(argv: list[str]) -> str:
    name = Path(argv[0]).name
    words = [*(["python"] if name.endswith(".py") else []), name, *map(_without_folders, argv[1:])]
    return shlex.join(words)


def _without_folders(argument: str) -> str:
    """``--out=/home/me/x`` as ``--out=x``, and ``/home/me/x`` or ``../x`` as ``x``."""
    flag, equals, value = argument.rpartition("=")
    value = os.path.expanduser(value)
    elsewhere = os.path.isabs(value) or value.startswith(f"..{os.sep}")
    return flag + equals + (Path(value).name if elsewhere else value)


def _versions(*packages: str) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _git(*arguments: str) -> str | None:
    """What git says of the clone that the package lies at the top of; None if there is none."""
    root = _PACKAGE.parent

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=30
        )
        return done.stdout.strip()

    try:
        # An installed package may lie within the clone of another project.
        if not os.path.samefile(ask("rev-parse", "--show-toplevel"), root):
            return None
        return ask(*arguments)
    except (OSError, subprocess.SubprocessError):
        return None


def _source_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h")]


@cache
def _digest_of_code() -> str:
    digest = hashlib.sha256()
    for name in _COSTLY:
        place = _PACKAGE / name
        files = [place] if place.is_file() else _source_files(place)
        for path in sorted(files):
            digest.update(str(path.relative_to(_PACKAGE)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
