"""Patterns as the sweeps of the kernel: what kernel.cpp's structures hold, made of patterns."""

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import numpy as np

from sparse_tx.attention.cpu.library import KERNEL
from sparse_tx.patterns import BlockLocal, Dense, Local, Pattern, Strided, Summary

# The patterns that sweeps are known for; one derived from them may allow other pairs.
PARTS = (Dense, Local, BlockLocal, Strided, Summary)

# Tasks of a backward pass in rows, over all heads and batch entries: enough for many cores, as far
# as the spill stays small, to which each chunk of queries adds as many rows as its first query
# reads. Shapes alone decide, never the number of threads, because chunks decide the order of sums.
_TASKS = 32
_LARGEST_SPILL = 1 / 32  # of the length
# A few tasks there are in any case: four chunks of a dense head spill 1/4 + 2/4 + 3/4 of its keys.
_FEWEST_TASKS = 4
_LARGEST_SPILL_OF_FEW = 3 / 2


class TensorView(ctypes.Structure):
    """``TensorView`` of kernel.cpp."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("position", ctypes.c_int64),
    )


class Sweep(ctypes.Structure):
    """``Sweep`` of kernel.cpp."""

    _fields_ = (
        ("head", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("dense", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("blocks", ctypes.c_void_p),
        ("n_blocks", ctypes.c_int64),
        ("columns", ctypes.c_void_p),
        ("n_columns", ctypes.c_int64),
        ("periods", ctypes.c_void_p),
        ("n_periods", ctypes.c_int64),
        ("merges", ctypes.c_int64),
        ("n_chunks", ctypes.c_int64),
        ("spill_rows", ctypes.c_void_p),
    )


class Problem(ctypes.Structure):
    """``Problem`` of kernel.cpp."""

    _fields_ = (
        *((name, TensorView) for name in ("q", "k", "v", "out", "d_out", "dq", "dk", "dv")),
        ("lse", ctypes.c_void_p),
        ("spill", ctypes.c_void_p),
        ("n_spill_rows", ctypes.c_int64),
        ("grads_are_zero", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in ("B", "H", "T", "D", "D_v")),
        ("scale", ctypes.c_double),
        ("sweeps", ctypes.c_void_p),
        ("n_sweeps", ctypes.c_int64),
        ("n_threads", ctypes.c_int64),
        ("parallel", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Phase:
    """Sweeps that may run at once: one for each head that has any left.

    In each of them, if it ``reads_every_key``, queries read their own positions, so that a backward
    pass writes the gradient of every key. ``kept`` are the arrays that ``sweeps`` points to.
    """

    sweeps: ctypes.Array
    reads_every_key: bool
    n_spill_rows: int
    kept: tuple[np.ndarray, ...]


@lru_cache(maxsize=64)
def phases(heads: tuple[Pattern, ...], B: int, T: int) -> tuple[Phase, ...]:
    """Sweeps that compute every allowed pair of every head once, in phases that follow in turn."""
    sweeps = [_sweeps(pattern, T) for pattern in heads]
    found = []
    for n in range(max(map(len, sweeps))):
        here = [(head, mine[n]) for head, mine in enumerate(sweeps) if n < len(mine)]
        found.append(_phase(here, B, T, merges=n > 0))
    return tuple(found)


def _sweeps(pattern: Pattern, T: int) -> list[dict]:
    """One head's sweeps: all parts in rows together, then each strided part."""
    if any(isinstance(part, Dense) for part in pattern.parts) or Strided(1) in pattern.parts:
        return [{"dense": 1, "stride": 0}]
    windows = [part.window for part in pattern.parts if isinstance(part, Local)]
    rows = {
        "window": max(windows, default=0),
        "blocks": sorted({p.length for p in pattern.parts if isinstance(p, BlockLocal)}),
        "columns": _columns(pattern, T),
    }
    found = []
    if any(not isinstance(part, Strided) for part in pattern.parts):
        found.append({"stride": 0, **rows})
    strides: list[int] = []
    for stride in sorted({p.stride for p in pattern.parts if isinstance(p, Strided)}):
        periods = [earlier // gcd(earlier, stride) for earlier in strides]
        if 1 not in periods:  # else an earlier part reads all of its pairs
            found.append({"stride": stride, **rows, "periods": periods})
            strides.append(stride)
    return found


def _columns(pattern: Pattern, T: int) -> np.ndarray:
    """The positions that some summary part reads, ascending."""
    keys = np.arange(T)
    read = np.zeros(T, dtype=bool)
    for part in pattern.parts:
        if isinstance(part, Summary):
            read |= part.allows(T, keys)
    return keys[read]


def _phase(sweeps: list[tuple[int, dict]], B: int, T: int, merges: bool) -> Phase:
    structures = (Sweep * len(sweeps))()
    kept, n_spill_rows = [], 0

    def point_to(numbers) -> tuple[int, int]:
        kept.append(np.ascontiguousarray(numbers, dtype=np.int64))
        return kept[-1].ctypes.data, len(kept[-1])

    for structure, (head, sweep) in zip(structures, sweeps, strict=True):
        structure.head, structure.stride, structure.merges = head, sweep["stride"], merges
        structure.dense, structure.window = sweep.get("dense", 0), sweep.get("window", 0)
        structure.blocks, structure.n_blocks = point_to(sweep.get("blocks", ()))
        structure.columns, structure.n_columns = point_to(sweep.get("columns", ()))
        structure.periods, structure.n_periods = point_to(sweep.get("periods", ()))
        spills = _spills(structure, T, B * len(sweeps))
        structure.n_chunks = len(spills)
        structure.spill_rows, _ = point_to(n_spill_rows + np.cumsum([0, *spills]))
        n_spill_rows += sum(spills)
    reads_every_key = all(s.stride or s.dense or s.window or s.n_blocks for s in structures)
    return Phase(structures, reads_every_key, n_spill_rows, tuple(kept))


def _spills(sweep: Sweep, T: int, n_sweeps: int) -> list[int]:
    """The rows that each chunk spills, for the most chunks that do not spill too many."""
    if sweep.stride:
        return [0]
    rows_of = KERNEL.load().sparse_spill_rows
    rows_of.restype, rows_of.argtypes = ctypes.c_int64, (ctypes.c_void_p, *[ctypes.c_int64] * 2)
    for n in range(_TASKS // n_sweeps, 0, -1):
        sweep.n_chunks = n
        rows = [rows_of(ctypes.addressof(sweep), T, chunk) for chunk in range(n)]
        few = n * n_sweeps <= _FEWEST_TASKS
        if sum(rows) <= (_LARGEST_SPILL_OF_FEW if few else _LARGEST_SPILL) * T:
            return rows
    return [0]
