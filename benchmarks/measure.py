"""How it is measured: seconds, peak memory, and what the machine does at best."""

import os
import time
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from statistics import median

import torch
from contenders import Attend, Contender, Problem

# Edges of the matrix product, and bytes of the array that is copied.
_GEMM = {"cpu": 2048, "cuda": 8192}
_COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
_REPEATS = 3
# Zeroing this many bytes so often takes a GPU some 10 ms, longer than launching a pass takes.
_FLUSHED, _FLUSHES = 1 << 29, 64


class Stopwatch:
    """Seconds between marks: of the clock on a CPU, of events in the stream on a GPU.

    On a GPU it first empties the caches, and so long that launches get ahead of the device: the
    events then enclose the device's time alone, unless what is timed waits for the device itself.
    """

    def __init__(self, device: str):
        self._cuda = device == "cuda"
        if self._cuda:
            for _ in range(_FLUSHES):
                _flushed().zero_()
        self._marks = []
        self.mark()

    def mark(self) -> None:
        if self._cuda:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Seconds from each mark to the next."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if not self._cuda:
            return [end - begin for begin, end in pairs]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1000 for begin, end in pairs]


@cache
def _flushed() -> torch.Tensor:
    return torch.empty(_FLUSHED, dtype=torch.uint8, device="cuda")


def timed_pass(attend: Attend, inputs: tuple, device: str, *, backward: bool) -> list[float]:
    """Seconds of the forward pass and, if there is one, of the backward pass."""
    q, k, v, d_out = inputs
    with torch.set_grad_enabled(backward):
        watch = Stopwatch(device)
        out = attend(q, k, v)
        watch.mark()
        if backward:
            out.backward(d_out)
            watch.mark()
    q.grad = k.grad = v.grad = None
    return watch.laps()


def gemm_flops_per_s(device: str, dtype: torch.dtype) -> float:
    """The machine's square matrix product: a median."""
    n = _GEMM[device]
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / _median_seconds(lambda: a @ a, device)


def copy_bytes_per_s(device: str) -> float:
    """Bytes read and written in a second by a copy of a large array: a median."""
    source = torch.ones(_COPIED[device], dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.numel() / _median_seconds(lambda: target.copy_(source), device)


def _median_seconds(run, device: str) -> float:
    run()
    seconds = []
    for _ in range(_REPEATS):
        watch = Stopwatch(device)
        run()
        watch.mark()
        seconds += watch.laps()
    return median(seconds)


def free_bytes(device: str) -> int:
    """Memory that is free on the device."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return _kilobytes("/proc/meminfo", "MemAvailable")


def peak_bytes(contender: Contender, problem: Problem) -> int:
    """The memory that one pass takes beyond its inputs, preparation included.

    On a CPU that is the highest resident set, less what was resident before, in a process of its
    own. There malloc gives freed memory back at once, so that the figure is of what is held, not of
    what malloc keeps. On a GPU it is the allocator's peak.
    """
    if problem.device == "cuda":
        return _peak_allocated(contender, problem)
    receiver, sender = _fresh_processes().Pipe(duplex=False)
    process = _fresh_processes().Process(
        target=_send_peak_resident, args=(sender, contender, problem)
    )
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"the process that measured {contender} ended early") from error
    finally:
        process.join()


@cache
def _fresh_processes() -> BaseContext:
    """Starts processes from a server that imports what takes seconds, and starts no thread."""
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "0"  # which malloc reads when the server begins
    context = get_context("forkserver")
    context.set_forkserver_preload(["sparse_tx.attention.flex"])
    return context


def _send_peak_resident(sender: Connection, contender: Contender, problem: Problem) -> None:
    sender.send(_peak_resident(contender, problem))


def _peak_allocated(contender: Contender, problem: Problem) -> int:
    inputs = problem.inputs()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _one_pass(contender, problem, inputs)
    return torch.cuda.max_memory_allocated() - before


def _peak_resident(contender: Contender, problem: Problem) -> int:
    T = problem.T if contender.compiles() else 300
    small = Problem(problem.H, T, problem.D, problem.device, problem.dtype)
    _one_pass(contender, small, small.inputs())  # libraries load and threads start
    inputs = problem.inputs()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _kilobytes("/proc/self/status", "VmRSS")
    _one_pass(contender, problem, inputs)
    return _kilobytes("/proc/self/status", "VmHWM") - before


def _one_pass(contender: Contender, problem: Problem, inputs: tuple) -> None:
    q, k, v, d_out = inputs
    with torch.set_grad_enabled(contender.has_backward(problem.device)):
        out = contender.prepare(problem)(q, k, v)
        if contender.has_backward(problem.device):
            out.backward(d_out)


def _kilobytes(path: str, field: str) -> int:
    """A field of one of Linux's tables of memory, in bytes."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)
