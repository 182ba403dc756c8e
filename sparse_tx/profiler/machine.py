"""Clocks for work on a device, and what the machine does at best."""

import time
from collections.abc import Callable
from functools import cache
from math import inf
from statistics import median

import torch

from sparse_tx.profiler.records import Ceilings

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
        """End a lap, and begin the next."""
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


def clock(device: str) -> float:
    """Seconds of the clock on the wall, once the device has done all that it was told to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    """The matrix product in ``dtype``, and the copy, of ``cpu`` or ``cuda``; in a second or so."""
    found = Ceilings(
        gemm_flops_per_s=gemm_flops_per_s(device, dtype),
        copy_bytes_per_s=copy_bytes_per_s(device),
        fresh_bytes_per_s=fresh_bytes_per_s(device),
    )
    if device == "cuda":  # what this process keeps, no process that measures can have
        _flushed.cache_clear()
        torch.cuda.empty_cache()
    return found


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


def fresh_bytes_per_s(device: str) -> float:
    """Bytes of fresh memory that the system hands over in a second, while they are first written.

    On a CPU each page costs a fault: the difference between writing a large block that malloc has
    just taken from the system and writing it again. A GPU's allocator keeps what it has.
    """
    if device != "cpu":
        return inf
    blocks: list[torch.Tensor] = []

    def write_fresh() -> None:
        blocks[:] = [torch.empty(_COPIED[device], dtype=torch.uint8)]
        blocks[0].fill_(1)

    extra = _median_seconds(write_fresh, device) - _median_seconds(
        lambda: blocks[0].fill_(1), device
    )
    return _COPIED[device] / extra if extra > 0 else inf


def _median_seconds(run: Callable[[], object], device: str) -> float:
    run()
    seconds = []
    for _ in range(_REPEATS):
        watch = Stopwatch(device)
        run()
        watch.mark()
        seconds += watch.laps()
    return median(seconds)
