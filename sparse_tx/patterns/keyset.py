"""Sets of key positions, held as a few combs instead of many integers.

Whatever a pattern reads at one query is an interval with teeth: the positions of ``[start, stop)``
whose residue modulo some number lies in a short run. One small class therefore serves reading,
counting and cache policy, at any length.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from heapq import merge
from itertools import combinations
from math import gcd, prod

# Inclusion and exclusion of n combs has 2^n terms; of more, positions are counted one by one.
_MOST_COMBS = 6


@dataclass(frozen=True, slots=True)
class Comb:
    """The integers j of ``[start, stop)`` with ``(j - first) % modulus < width``."""

    start: int
    stop: int
    modulus: int = 1
    first: int = 0
    width: int = 1

    def __contains__(self, j: int) -> bool:
        return self.start <= j < self.stop and (j - self.first) % self.modulus < self.width

    def __len__(self) -> int:
        if self.stop <= self.start:
            return 0
        return self._teeth_below(self.stop) - self._teeth_below(self.start)

    def _teeth_below(self, j: int) -> int:
        periods, rest = divmod(j - self.first, self.modulus)
        return periods * self.width + min(rest, self.width)

    @property
    def is_interval(self) -> bool:
        """Whether no position between ``start`` and ``stop`` is left out."""
        return self.width == self.modulus

    def ranges(self) -> Iterator[range]:
        """Yield disjoint ascending ranges that together are this comb."""
        if self.is_interval:
            yield range(self.start, self.stop)
            return
        for tooth in range(self.width):
            begin = self.start + (self.first + tooth - self.start) % self.modulus
            yield range(begin, max(begin, self.stop), self.modulus)


class KeySet(Set):
    """An immutable, ordered set of positions: the union of some combs, which may overlap.

    Equal to, and combined with, any other ``Set`` (``read_set(i) == {0, 1}``); iterates in
    ascending order; ``in`` never enumerates, nor does ``len`` where the combs are few.
    """

    __slots__ = ("combs",)

    def __init__(self, *combs: Comb):
        self.combs = combs

    @classmethod
    def _from_iterable(cls, positions):  # what Set's operators build their results with
        return frozenset(positions)

    def __contains__(self, j: object) -> bool:
        return any(j in comb for comb in self.combs)

    def __iter__(self) -> Iterator[int]:
        last = None
        for j in merge(*self.ranges()):
            if j != last:
                yield j
            last = j

    def __len__(self) -> int:
        if len(self.combs) > _MOST_COMBS:
            return sum(1 for _ in self)
        total = 0
        for size in range(1, len(self.combs) + 1):
            for chosen in combinations(self.combs, size):
                total -= (-1) ** size * _count_intersection(chosen)
        return total

    def __repr__(self) -> str:
        return f"KeySet({', '.join(map(repr, self.combs))})"

    def ranges(self) -> list[range]:
        """The ascending ranges whose union this set is; two of them overlap where two combs do."""
        return [r for comb in self.combs for r in comb.ranges() if r]


def _count_intersection(combs: tuple[Comb, ...]) -> int:
    start, stop = max(c.start for c in combs), min(c.stop for c in combs)
    toothed = [c for c in combs if not c.is_interval]
    if len(toothed) <= 1:
        c = toothed[0] if toothed else Comb(0, 0)
        return len(Comb(start, stop, c.modulus, c.first, c.width))
    residues = [(1, 0)]
    # Narrow combs first: the list of joint residues stays as short as it can.
    for comb in sorted(toothed, key=lambda c: c.width):
        residues = [
            joint
            for modulus, residue in residues
            for tooth in range(comb.width)
            if (joint := _meet(modulus, residue, comb.modulus, comb.first + tooth))
        ]
    return sum(len(Comb(start, stop, modulus, residue)) for modulus, residue in residues)


def _meet(m1: int, r1: int, m2: int, r2: int) -> tuple[int, int] | None:
    """Solve j = r1 (mod m1), j = r2 (mod m2): the modulus and residue of all solutions, or None."""
    common = gcd(m1, m2)
    if (r2 - r1) % common:
        return None
    step = m2 // common
    turns = (r2 - r1) // common * pow(m1 // common, -1, step) % step if step > 1 else 0
    return prod((m1, step)), r1 + m1 * turns
