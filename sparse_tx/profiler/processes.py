"""A freshly started process for each piece of work, watched by the one that asked for it."""

import os
import signal
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from math import inf
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch

from sparse_tx.errors import UserError
from sparse_tx.profiler.memory import peak_resident_bytes

Tell = Callable[[str, Any], None]
"""What a process says of its work to whoever watches it: a name, and a value that pickles."""

# How often the memory of a running process is looked at.
_POLL_SECONDS = 0.05
# What a process may take to end after its last word.
_GRACE_SECONDS = 20.0
# How the system, torch, its libraries and Python say that there is no memory, in lower case.
_NO_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "could not allocate",
    "out of memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",
    "memoryerror",
)
_END = "end"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What came of a process.

    Attributes:
        told: all that it told, by name, in the order told.
        cause: why it ended early; None if it did not.
        killed: whether the system killed it.
        peak_bytes: the most resident memory that was seen of it since it first told something; 0
            if none was.
    """

    told: dict[str, list[Any]]
    cause: Literal["memory", "time"] | None = None
    killed: bool = False
    peak_bytes: int = 0


def run_in_fresh_process(
    work: Callable[..., None], *arguments: Any, time_limit_s: float | None = None
) -> Ending:
    """Call ``work(tell, *arguments)`` in a process of its own, and wait for its end.

    The process comes from a server which has imported what takes long and started no thread, so
    that it begins within milliseconds. It has as many threads for torch as this one, is the first
    that the system kills when memory runs out, prints nothing, and does not outlive this one.

    Args:
        work: a function at the top of a module; it and its arguments have to pickle.
        arguments: its further arguments.
        time_limit_s: seconds after which the process is killed; None for any time.

    Raises:
        UserError: ``work`` raised one.
        RuntimeError: ``work`` raised anything else that does not say that memory has run out, or
            its process ended without a word; with the traceback, or with what it has printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "printed"
        receiver, sender = _fresh_processes().Pipe(duplex=False)
        process = _fresh_processes().Process(
            target=_live, args=(sender, printed, torch.get_num_threads(), work, arguments)
        )
        process.start()
        try:
            sender.close()
            return _watch(process, receiver, printed, time_limit_s or inf)
        finally:
            process.kill()  # at its end nothing is left to do for it, save giving back its memory
            process.join()
            process.close()
            receiver.close()


def _watch(
    process: BaseProcess, receiver: Connection, printed: Path, time_limit_s: float
) -> Ending:
    deadline = time.monotonic() + time_limit_s
    told, peak = defaultdict(list), 0
    while True:
        try:
            while receiver.poll(_POLL_SECONDS):
                name, value = receiver.recv()
                if name == _END:
                    cause, at_end = _cause(value)
                    return Ending(told=dict(told), cause=cause, peak_bytes=max(peak, at_end))
                told[name].append(value)
        except (EOFError, OSError):
            break
        if told:
            peak = max(peak, _peak_if_known(process.pid))
        if time.monotonic() >= deadline:
            return Ending(told=dict(told), cause="time", peak_bytes=peak)
    process.join(_GRACE_SECONDS)
    said = printed.read_text(errors="replace") if printed.exists() else ""
    # Nobody but the system kills a process that has offered itself.
    killed = process.exitcode == -signal.SIGKILL
    if killed or _says_no_memory(said):
        return Ending(told=dict(told), cause="memory", killed=killed, peak_bytes=peak)
    raise RuntimeError(
        f"a process that measured ended with status {process.exitcode} and without a result"
        f" (a script that measures keeps its commands under if __name__ == '__main__'):\n{said}"
    )


def _peak_if_known(process: int | str) -> int:
    """0 if the process has just ended, or if the system does not tell."""
    try:
        return peak_resident_bytes(process)
    except (OSError, KeyError):
        return 0


@dataclass(frozen=True)
class _Failure:
    """What ``work`` raised, in a form that always pickles, and the most memory held till then."""

    kind: Literal["user", "memory", "defect"]
    text: str
    peak_bytes: int = 0


def _cause(failure: _Failure | None) -> tuple[Literal["memory"] | None, int]:
    if failure is None:
        return None, 0
    if failure.kind == "user":
        raise UserError(failure.text)
    if failure.kind == "defect":
        raise RuntimeError(f"in a process that measured:\n{failure.text}")
    return "memory", failure.peak_bytes


@cache
def _fresh_processes() -> BaseContext:
    """Starts processes from a server that imports what takes seconds, and starts no thread."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    # The latter is imported by optimisers, when the first one is made.
    context.set_forkserver_preload(["sparse_tx.profiler.measure", "torch._dynamo"])
    return context


# --- In the process -------------------------------------------------------------------------


def _live(
    sender: Connection,
    printed: Path,
    n_threads: int,
    work: Callable[..., None],
    arguments: tuple,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    try:
        output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except FileNotFoundError:
        return  # whoever asked was interrupted meanwhile, and took the folder along
    os.dup2(output, 1)
    os.dup2(output, 2)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(n_threads)
    failure = None
    try:
        work(lambda name, value: sender.send((name, value)), *arguments)
    except UserError as error:
        failure = _Failure("user", str(error))
    except Exception as error:  # whatever it is, it is raised again where somebody sees it
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and _says_no_memory(str(error))
        )
        failure = _Failure("defect", traceback.format_exc())
        if is_memory:
            failure = _Failure("memory", str(error), _peak_if_known("self"))
    sender.send((_END, failure))


def _die_with_parent() -> None:
    wait([parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _says_no_memory(text: str) -> bool:
    return any(words in text.lower() for words in _NO_MEMORY)
