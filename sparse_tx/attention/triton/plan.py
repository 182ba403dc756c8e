"""From patterns to sweeps: a few tables of O(T) integers from which every kernel finds its tiles.

The keys of query i fall into two sets. *Inside* is one interval that ends at the query,
``start[i] <= j <= i``: the union of the intervals of ``dense``, ``local`` and ``block``. *Outside*,
``j < start[i]``, are the summary positions, which all later queries share, and the query's own
columns of strided parts. ``start`` never decreases, so a run of queries shares all outside keys
below its first query's start, and only keys between its first and its last start need a mask.

Seen from a key, the same split is one number again: ``after[j]``, the first query to which j lies
outside. Queries from j up to it see j inside, queries from there on, outside:

    start[i] <= j <= i   <=>   j <= i < after[j],        j < start[i]   <=>   i >= after[j].

Both passes read their tile bounds out of these tables, whatever the tile size.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

from sparse_tx.patterns import BlockLocal, Dense, Local, Pattern, Strided, Summary

# In shorter sequences a launch takes longer than what a better tile shape saves.
_WORTH_TUNING = 1024


class Outside(IntEnum):
    """Where the outside keys of a sweep are found."""

    NONE = 0
    LISTED = 1  # in a list of summary positions
    COLUMN = 2  # in the query's own residue class modulo the stride


@dataclass(frozen=True, eq=False)
class Sweep:
    """One launch per pass: some heads, and which of their keys it computes.

    Attributes:
        heads: ``(n, 3)`` int32: head, its row of ``start`` and ``after``, its row of the lists.
        n_heads: how many heads.
        inside: whether the inside keys are computed.
        outside: which outside keys are computed.
        spacing: distance of successive queries of a tile, in tokens; above 1 only in columns.
        start: ``(rows, T)`` int32, the first inside key of every query.
        after: ``(rows, T)`` int32, the first query that sees a key outside.
        listed: ``(lists, n)`` int32, summary positions, ascending; the shorter ones are padded.
        listed_below: ``(lists, T + 1)`` int32, how many of them are below a position.
        taken: whether pairs are left out because a list computes them (columns only).
        earlier: ``(n,)`` int32, strides whose pairs another sweep computes (columns only), or None.
        longest_list: the length of the longest list.
        merges: whether earlier sweeps have computed other keys of the same queries.
        span: mean keys per query, rounded up to a power of two: what tuning depends on; 0 where T
            is too small for tuning.
    """

    heads: Tensor
    n_heads: int
    inside: bool
    outside: Outside
    start: Tensor
    after: Tensor
    span: int
    spacing: int = 1
    listed: Tensor | None = None
    listed_below: Tensor | None = None
    longest_list: int = 0
    taken: bool = False
    earlier: Tensor | None = None
    merges: bool = False


@dataclass(frozen=True)
class _Sets:
    """The parts of one head's pattern, by what a kernel does with them."""

    intervals: tuple[Pattern, ...]
    summaries: tuple[Summary, ...]
    strides: tuple[int, ...]

    @property
    def in_rows(self) -> bool:
        return bool(self.intervals or self.summaries)


@lru_cache(maxsize=32)
def plan(heads: tuple[Pattern, ...], T: int, device: torch.device) -> tuple[Sweep, ...]:
    """Sweeps that together compute every allowed pair of every head exactly once."""
    sets = [_sets(pattern, T) for pattern in heads]
    # Inside keys and summaries first; columns leave out whatever those have computed.
    rows = _group(
        (key, head)
        for head, s in enumerate(sets)
        if (key := (bool(s.intervals), bool(s.summaries))) != (False, False)
    )
    sweeps = [
        _sweep(sets, chosen, T, device, inside=inside, listed=listed)
        for (inside, listed), chosen in rows.items()
    ]
    for depth in range(max(len(s.strides) for s in sets)):
        columns = _group(
            ((s.strides[: depth + 1], s.in_rows, bool(s.summaries)), head)
            for head, s in enumerate(sets)
            if depth < len(s.strides)
        )
        sweeps += [
            _sweep(sets, chosen, T, device, strides=strides, listed=listed, merges=in_rows)
            for (strides, in_rows, listed), chosen in columns.items()
        ]
    return tuple(sweeps)


def _group(pairs) -> dict[tuple, list[int]]:
    groups: dict[tuple, list[int]] = {}
    for key, head in pairs:
        groups.setdefault(key, []).append(head)
    return groups


def _sets(pattern: Pattern, T: int) -> _Sets:
    parts = tuple(dict.fromkeys(_as_interval(part, T) for part in pattern.parts))
    intervals = tuple(part for part in parts if isinstance(part, Dense | Local | BlockLocal))
    if any(part.combs(T - 1)[0].start == 0 for part in intervals):
        return _Sets((Dense(),), (), ())  # what the last query sees whole, all others do
    summaries = tuple(part for part in parts if isinstance(part, Summary))
    strides = tuple(part.stride for part in parts if isinstance(part, Strided))
    return _Sets(intervals, summaries, strides)


def _as_interval(part: Pattern, T: int) -> Pattern:
    """The shortest and the longest strides read intervals: all keys, and the query's own."""
    if isinstance(part, Strided) and part.stride == 1:
        return Dense()
    if isinstance(part, Strided) and part.stride >= T:
        return Local(1)
    return part


def _sweep(sets, chosen, T, device, *, inside=False, listed=False, strides=(), merges=False):
    starts, lists = {}, {}
    table = [
        (
            head,
            starts.setdefault(sets[head].intervals, len(starts)),
            lists.setdefault(sets[head].summaries, len(lists)),
        )
        for head in chosen
    ]
    bounds = [_bounds(intervals, T, device) for intervals in starts]
    start, after = (torch.stack(rows) for rows in zip(*bounds, strict=True))
    found = _lists(tuple(lists), T, device) if listed else (None, None, 0)
    if strides:
        outside, mean = Outside.COLUMN, T // strides[-1] // 2
    else:
        outside = Outside.LISTED if listed else Outside.NONE
        own = torch.arange(1, T + 1, device=device) - start
        mean = own.double().mean().item() + found[2] / 2
    earlier = torch.tensor(strides[:-1], dtype=torch.int32, device=device)
    return Sweep(
        heads=torch.tensor(table, dtype=torch.int32, device=device),
        n_heads=len(chosen),
        inside=inside,
        outside=outside,
        start=start,
        after=after,
        span=1 << max(0, int(mean) - 1).bit_length() if T >= _WORTH_TUNING else 0,
        spacing=strides[-1] if strides else 1,
        listed=found[0],
        listed_below=found[1],
        longest_list=found[2],
        taken=bool(strides) and listed,
        earlier=earlier if len(earlier) else None,
        merges=merges or len(strides) > 1,
    )


@lru_cache(maxsize=16)
def _bounds(intervals, T: int, device) -> tuple[Tensor, Tensor]:
    """``start`` and ``after`` of the union of some intervals; of none, everything is outside."""
    i = torch.arange(T, dtype=torch.int32, device=device)
    start = i + 1
    for part in intervals:
        match part:
            case Dense():
                begin = torch.zeros_like(i)
            case Local(window):
                begin = (i + 1 - min(window, T)).clamp_(min=0)
            case BlockLocal(length):
                begin = i - i % min(length, T)
        start = torch.minimum(start, begin)
    return start, torch.searchsorted(start, i, right=True, out_int32=True)


def _lists(summaries, T: int, device) -> tuple[Tensor, Tensor, int]:
    """The positions that some summary of each set reads, and how many are below a position."""
    keys = torch.arange(T, device=device)
    read = torch.zeros((len(summaries), T), dtype=torch.bool, device=device)
    for row, parts in zip(read, summaries, strict=True):
        for part in parts:
            row |= part.allows(T, keys)
    below = torch.zeros((len(summaries), T + 1), dtype=torch.int32, device=device)
    below[:, 1:] = read.cumsum(1, dtype=torch.int32)
    longest = int(below[:, -1].max())
    listed = torch.zeros((len(summaries), max(1, longest)), dtype=torch.int32, device=device)
    for row, positions in zip(listed, read, strict=True):
        found = positions.nonzero().squeeze(1)
        row[: len(found)] = found
    return listed, below, longest
