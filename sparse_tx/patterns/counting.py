"""Exact numbers of (query, key) pairs, in closed form at any length.

Every set of the algebra asks one condition of a pair: that the distance is below a window, or a
multiple of a stride, that both positions are in one block, or that the key is in certain columns.
Conditions add up under intersection, so that one class counts any intersection of sets, and a union
follows by inclusion and exclusion.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import inf, lcm

from sparse_tx.patterns.keyset import Comb


@dataclass(frozen=True)
class Conditions:
    """The pairs (q, k) with k <= q for which all of this holds.

    Attributes:
        window: q - k < window.
        stride: q - k is a multiple of it.
        blocks: q and k are in one block, for each of these block lengths.
        columns: k is in the columns, for each of these (length, first column, number of columns).
    """

    window: float = inf
    stride: int = 1
    blocks: frozenset[int] = frozenset()
    columns: frozenset[tuple[int, int, int]] = frozenset()

    def __and__(self, other: "Conditions") -> "Conditions":
        return Conditions(
            min(self.window, other.window),
            lcm(self.stride, other.stride),
            self.blocks | other.blocks,
            self.columns | other.columns,
        )

    def count_pairs(self, T: int) -> int:
        """Count the pairs among ``T`` positions.

        Takes time in proportion to the columns of a period and, where several block lengths or
        blocks and columns meet, to the blocks of a common period, but no more than O(T).
        """
        period = lcm(*(length for length, _, _ in self.columns))
        keys = self._columns_below(min(period, T))
        if not self.blocks:
            return self._count_between(0, T, keys, period)
        common = lcm(period, *self.blocks)  # after which the blocks and their columns repeat
        repeats, rest = divmod(T, common)
        return sum(
            times * self._count_between(start, stop, keys, period)
            for times, end in ((repeats, common), (1, rest))
            if times
            for start, stop in self._joint_blocks(end)
        )

    def _joint_blocks(self, end: int) -> Iterator[tuple[int, int]]:
        """The runs of positions below ``end`` that no boundary of any block divides."""
        starts = set().union(*(range(0, end, length) for length in self.blocks))
        return pairwise(sorted(starts | {end}))

    def _columns_below(self, end: int) -> list[int]:
        """The keys below ``end`` that are in all columns."""
        combs = [Comb(0, end, *columns) for columns in self.columns] or [Comb(0, end)]
        sparsest = min(combs, key=len)
        return sorted(
            k for run in sparsest.ranges() for k in run if all(k in comb for comb in combs)
        )

    def _count_between(self, start: int, stop: int, keys: list[int], period: int) -> int:
        """Count the pairs of ``[start, stop)``, blocks aside; ``keys`` repeat every ``period``."""
        phase, n = start % period, stop - start
        total = 0
        for turn in (0, period):
            low, high = phase - turn, phase - turn + min(n, period)
            for key in keys[bisect_left(keys, low) : bisect_left(keys, high)]:
                last = n - 1 - (key - low)  # the largest distance that this key is read from
                distances = min(last, self.window - 1) // self.stride + 1
                # Keys period apart follow: at distance d, 1 + (last - d) // period pairs are left.
                nearest = last - self.stride * (distances - 1)
                total += distances + _sum_of_floors(distances, self.stride, nearest, period)
        return total


def count_union(sets: Iterable[Conditions], T: int) -> int:
    """Count the pairs among ``T`` positions that are in at least one of ``sets``."""
    terms: Counter[Conditions] = Counter()  # how often each intersection is added (or taken away)
    for one in set(sets):
        for joint, times in list(terms.items()):
            terms[joint & one] -= times
        terms[one] += 1
    return sum(times * joint.count_pairs(T) for joint, times in terms.items() if times)


def count_joint_classes(partitions: Sequence, T: int) -> int:
    """Count the pairs among ``T`` positions that share a class of at least one of ``partitions``.

    By inclusion and exclusion, since what several have in common parts the positions again; O(T)
    for each selection of them.
    """
    of_each = [[part.class_of(i) for i in range(T)] for part in partitions]
    total = 0
    for size in range(1, len(partitions) + 1):
        for chosen in combinations(of_each, size):
            total -= (-1) ** size * sum(n * n for n in Counter(zip(*chosen, strict=True)).values())
    return total


def count_by_readers(pattern, T: int) -> int:
    """Count the pairs of any pattern among ``T`` positions without the triangle.

    Positions of one class read the same keys, which are counted once: for windows and what they
    are merged with, at every position.
    """
    readers: dict = {}  # of each class, one position and how many there are
    for i in range(T):
        first, n = readers.get(of := pattern.class_of(i), (i, 0))
        readers[of] = first, n + 1
    return sum(n * len(pattern.read_set(first, T)) for first, n in readers.values())


def _sum_of_floors(n: int, a: int, b: int, m: int) -> int:
    """Sum (a i + b) // m over i from 0 to n - 1, for a, b >= 0, in O(log) steps.

    The points below a line, counted by whole columns first and then with the axes exchanged, as in
    Euclid's algorithm (Graham, Knuth, Patashnik: Concrete Mathematics, section 3.5).
    """
    total = 0
    while n:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        n, b = divmod(a * n + b, m)
        a, m = m, a
    return total
