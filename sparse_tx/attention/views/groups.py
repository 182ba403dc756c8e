"""From patterns without the triangle to groups of queries and the keys that they read.

Most sets part the positions into classes within which all read all: rows and columns of a map, its
tiles and lattices, blocks, strides. Gathered, each class is a small dense product.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import inf

import torch
from torch import Tensor

from sparse_tx.patterns import Dense, Local, Pattern, Summary

# Scores computed at once, 2 MiB in float32, so that the passes over them stay in cache.
SCORES = 1 << 19
# Fewer queries make products too small.
_LEAST_CUT = 64
# Queries of a window that are taken together, within these, and about as many as the window has.
_FEWEST_ROWS, _MOST_ROWS = 16, 128


@dataclass(frozen=True)
class Group:
    """Positions that are computed side by side: G times R queries, each reading of M keys.

    Attributes:
        queries: ``(G, R)`` int64, none of them in two groups of one set.
        keys: ``(G, M)`` int64.
        bias: ``(G or 1, R, M)``, 0 where a pair is allowed and -inf where not; None if all are.
        merges: whether other sets of the same head come before this one.
    """

    queries: Tensor
    keys: Tensor
    bias: Tensor | None
    merges: bool


def groups_of(pattern: Pattern, T: int, n_heads: int, device: torch.device) -> Iterator[Group]:
    """Groups that together hold every allowed pair of the pattern exactly once.

    Args:
        pattern: of one head.
        T: how many positions.
        n_heads: how many heads, those of all batch entries, have the pattern.
        device: where the positions are.
    """
    n_scores = SCORES // n_heads
    parts = tuple(dict.fromkeys(pattern.parts))
    if Dense() in parts:
        parts = (Dense(),)
    for n, part in enumerate(parts):
        for queries, keys in _of_set(part, T, device):
            for some_queries, some_keys in _cut(queries, keys, n_scores):
                bias = _bias(part, parts[:n], some_queries, some_keys)
                yield Group(some_queries, some_keys, bias, merges=n > 0)


def _of_set(part: Pattern, T: int, device: torch.device) -> tuple[tuple[Tensor, Tensor], ...]:
    """Queries ``(G, R)`` and keys ``(G, M)`` that hold all pairs of the set, and maybe others."""
    position = torch.arange(T, device=device)
    if isinstance(part, Local):
        return tuple(_windows(part.window, position))
    if isinstance(part, Summary):
        read = part.relates(position, position)
        return ((position[None], position[read][None]),)
    return tuple((members, members) for members in _classes(part, T, device))


@lru_cache(maxsize=32)
def _classes(part: Pattern, T: int, device: torch.device) -> tuple[Tensor, ...]:
    """The classes, those of one size together: ``(classes, size)`` positions, ascending."""
    of_class = part.class_of(torch.arange(T, device=device))
    order = of_class.argsort(stable=True)
    _, sizes = of_class.unique(return_counts=True)
    size_of = sizes.repeat_interleave(sizes)  # of every position in order
    return tuple(order[size_of == size].view(-1, size) for size in sizes.unique().tolist())


def _windows(window: int, position: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Stretches of queries and all that is in the window of any; inner ones have one shape."""
    T = len(position)
    rows = min(T, max(_FEWEST_ROWS, min(_MOST_ROWS, window)))
    inner = []
    for start in range(0, T, rows):
        stop = min(T, start + rows)
        low, high = max(0, start + 1 - window), min(T, stop - 1 + window)
        if (stop - start, start - low, high - stop) == (rows, window - 1, window - 1):
            inner.append(start)
        else:
            yield position[start:stop][None], position[low:high][None]
    if inner:  # they follow one another; views, for their keys overlap
        queries = position[inner[0] : inner[-1] + rows].view(-1, rows)
        keys = position[inner[0] + 1 - window : inner[-1] + rows + window - 1]
        yield queries, keys.unfold(0, rows + 2 * (window - 1), rows)


def _cut(queries: Tensor, keys: Tensor, n_scores: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut groups, and where one alone is too large its queries, to some ``n_scores`` pairs.

    No less than ``_LEAST_CUT`` queries are left together where memory has room for that.
    """
    R, M = queries.shape[1], max(1, keys.shape[1])
    at_once = n_scores // (R * M)
    if at_once:
        yield from zip(queries.split(at_once), keys.split(at_once), strict=True)
        return
    rows = max(1, n_scores // M, min(_LEAST_CUT, SCORES // M))
    for some_queries, some_keys in zip(queries, keys, strict=True):
        for piece in some_queries.split(rows):
            yield piece[None], some_keys[None]


def _bias(part: Pattern, done: tuple[Pattern, ...], queries: Tensor, keys: Tensor) -> Tensor | None:
    """What to add to scores so that pairs outside ``part``, or within ``done``, have no weight."""
    if not done:
        if not isinstance(part, Local):
            return None
        queries, keys = queries[:1], keys[:1]  # the same for all windows of one shape
    q, k = queries[:, :, None], keys[:, None, :]
    allowed = part.relates(q, k)
    for other in done:
        allowed = allowed & ~other.relates(q, k)
    allowed = allowed.expand(len(queries), queries.shape[1], keys.shape[1])
    return torch.zeros(allowed.shape, device=q.device).masked_fill_(~allowed, -inf)
