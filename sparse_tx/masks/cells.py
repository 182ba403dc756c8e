"""What the pictures show: a layer's distinct sets, and how densely they fill squares of pairs."""

import numpy as np

from sparse_tx.masks.tiles import pairs_of_queries
from sparse_tx.patterns import Layer, Pattern

MAX_RUNS = 6


def sets_of_layer(layer: Layer, n_head: int) -> dict[Pattern, list[int]]:
    """The distinct sets that a layer's heads read, each with the heads that read it."""
    sets: dict[Pattern, list[int]] = {}
    for head, pattern in enumerate(layer.heads(n_head)):
        for part in dict.fromkeys(pattern.parts):
            sets.setdefault(part, []).append(head)
    return sets


def cell_shares(pattern: Pattern, T: int, cell: int) -> np.ndarray:
    """The share of allowed pairs in every square of ``cell`` positions a side.

    Returns:
        ``(n, n)`` float64 with queries as rows; the pairs of a cell that lie in the future count
        as not allowed. Pairs in two sets of a union count twice, up to a full cell.
    """
    n = -(-T // cell)
    shares = np.zeros((n, n))
    for row in range(n):
        queries = range(row * cell, min(T, (row + 1) * cell))
        shares[row, : row + 1] = row_shares(pattern, queries, cell)
    return shares


def row_shares(pattern: Pattern, queries: range, cell: int) -> np.ndarray:
    """The share of allowed pairs of some successive queries in each cell of keys up to the last."""
    pairs = pairs_of_queries(pattern, queries, cell).sum(axis=0)
    keys = np.full(len(pairs), cell)
    keys[-1] = queries.stop - (len(pairs) - 1) * cell
    return np.minimum(1, pairs / (len(queries) * keys))


def numbered(noun: str, numbers: list[int]) -> str:
    """Name some of a numbered kind by runs: ``layers 0-2, 4``; many runs are cut short."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    names = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    if len(names) > MAX_RUNS:
        names[MAX_RUNS - 2 : -1] = ["…"]
    return f"{noun}{'s' if len(numbers) > 1 else ''} {', '.join(names)}"


def counted(n: int, noun: str) -> str:
    """``1 head``, ``2 heads``; thousands are separated."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
