"""Where the keys of one head lie in its cache, so that what a step reads lies side by side.

Every key that is kept has a *slot*. The sets of a pattern are held in up to two regions of slots,
each in the order that its readers want:

* ``Recent``, what local windows and blocks read: a ring as long as the longest of them;
* ``Columns``, the summary columns, one after another;
* ``Residues``, of a stride s: positions p, p + s, p + 2 s, ... side by side, for each p below s;
* ``Everything``: all positions in order.

A key that both regions want lies in both. A step reads of the ring what is near, by its windows and
blocks, and of the other region what lies before that, so that no key counts twice. Sets that cannot
be told apart like this, such as two strides, are picked out of ``Everything`` one by one.

Here are positions and slots only; the numbers are in ``store``.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sparse_tx.patterns import BlockLocal, Dense, Local, Pattern, Strided, Summary

_NEAR = (Local, BlockLocal)
_WORDS = (Dense, Summary, Strided, *_NEAR)


class Region:
    """Slots for the positions of texts of up to some number of tokens."""

    slots: int
    """How many there are."""

    def keeps(self, position: int) -> bool:
        """Whether the key of a position has a slot here, for a while at least."""
        return True

    def slot_of(self, positions):
        """The slot of positions that are kept: an int or an array of int64."""
        raise NotImplementedError


@dataclass(frozen=True)
class Recent(Region):
    """A ring: position p has slot p mod ``slots``."""

    slots: int

    def slot_of(self, positions):
        return positions % self.slots

    def between(self, low: int, end: int) -> list[range]:
        """The slots of the positions from ``low`` to before ``end``, at most ``slots`` of them."""
        first, n = low % self.slots, end - low
        if n == self.slots:
            return [range(n)]  # in whichever order
        beyond = first + n - self.slots
        if beyond <= 0:
            return [range(first, first + n)]
        return [range(first, self.slots), range(beyond)]


class Columns(Region):
    """The positions below ``room`` that some of ``summaries`` read, in order.

    Attributes:
        below: how many columns lie before each position, ``(room + 1,)`` int32.
    """

    def __init__(self, summaries: tuple[Summary, ...], room: int):
        positions = np.arange(room)
        read = np.zeros(room, dtype=bool)
        for summary in summaries:
            read |= summary.allows(room, positions)
        self.below = np.zeros(room + 1, dtype=np.int32)
        np.cumsum(read, out=self.below[1:])
        self.slots = int(self.below[-1])

    def keeps(self, position):
        return bool(self.below[position + 1] > self.below[position])

    def slot_of(self, positions):
        return self.below[positions]

    @property
    def longest_read(self) -> int:
        """The most slots that a query reads."""
        return self.slots

    def before(self, low: int, query: int) -> list[range]:
        """The slots of what ``query`` reads of the positions before ``low``."""
        return [range(int(self.below[low]))]


@dataclass(frozen=True)
class Residues(Region):
    """A row of slots for each residue modulo ``stride``, for positions below ``room``."""

    stride: int
    room: int

    @property
    def row(self) -> int:
        """Slots of a row."""
        return -(-self.room // self.stride)

    @property
    def slots(self) -> int:
        return min(self.stride, self.room) * self.row

    @property
    def longest_read(self) -> int:
        """The most slots that a query reads."""
        return self.row

    def slot_of(self, positions):
        return positions % self.stride * self.row + positions // self.stride

    def before(self, low: int, query: int) -> list[range]:
        """The slots of what ``query`` reads of the positions before ``low``."""
        residue = query % self.stride
        first, n = residue * self.row, max(0, -(-(low - residue) // self.stride))
        return [range(first, first + n)]


@dataclass(frozen=True)
class Everything(Region):
    """Slot p for position p; a step reads what ``pattern`` lets it."""

    pattern: Pattern
    slots: int

    def slot_of(self, positions):
        return positions

    @property
    def longest_read(self) -> int:
        """The most slots that a query reads, or more."""
        return self.slots

    def before(self, low: int, query: int) -> list[range]:
        """The slots of what ``query`` reads, wherever it is."""
        if isinstance(self.pattern, Dense):
            return [range(query + 1)]
        ranges = self.pattern.read_set(query).ranges()
        read = np.unique(np.concatenate([np.arange(r.start, r.stop, r.step) for r in ranges]))
        runs = np.split(read, np.flatnonzero(np.diff(read) != 1) + 1)
        return [range(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]


class Layout:
    """The regions of one head's cache, one after another.

    Attributes:
        pattern: of the head.
        recent: the ring; None where no window or block reads what is near.
        rest: the other region; None where the ring is all there is.
        first_of_rest: the slot at which it begins.
        slots: those of both.
    """

    def __init__(
        self, pattern: Pattern, recent: Recent | None, rest: Columns | Residues | Everything | None
    ):
        self.pattern, self.recent, self.rest = pattern, recent, rest
        self.first_of_rest = recent.slots if recent else 0
        regions = [(0, recent), (self.first_of_rest, rest)]
        self._regions: list[tuple[int, Region]] = [each for each in regions if each[1] is not None]
        self.slots = sum(region.slots for _, region in self._regions)
        self._near = [part for part in pattern.parts if type(part) in _NEAR]

    def writes(self, position: int) -> list[int]:
        """The slots that the key of a position goes to."""
        return [
            first + int(region.slot_of(position))
            for first, region in self._regions
            if region.keeps(position)
        ]

    def reads(self, query: int) -> list[range]:
        """The slots that a step reads once its own key is written: ranges of step 1, none empty."""
        low, found = query + 1, []
        if self.recent is not None:
            low = min(part.combs(query)[0].start for part in self._near)
            found += self.recent.between(low, query + 1)
        if self.rest is not None:
            earlier = self.rest.before(low, query)
            first = self.first_of_rest
            found += [range(first + slots.start, first + slots.stop) for slots in earlier]
        return [slots for slots in found if slots]

    def fills(self, T: int) -> tuple[np.ndarray, np.ndarray]:
        """What a text of ``T`` tokens leaves: positions that later ones read, and slots, int64.

        A position that both regions want is there twice.
        """
        kept, slots = [], []
        for first, region in self._regions:
            positions = np.arange(T)
            if region is self.recent:
                positions = positions[min(p.retained_combs(T - 1)[0].start for p in self._near) :]
            elif isinstance(region, Columns):
                positions = positions[np.diff(region.below[: T + 1]) > 0]
            kept.append(positions)
            slots.append(first + region.slot_of(positions))
        return np.concatenate(kept), np.concatenate(slots).astype(np.int64)


@lru_cache(maxsize=256)
def layout_of(pattern: Pattern, room: int) -> Layout:
    """The layout for a head of ``pattern``, for texts of up to ``room`` tokens."""
    parts = pattern.parts
    near = [p.window if isinstance(p, Local) else p.length for p in parts if type(p) in _NEAR]
    summaries = tuple(part for part in parts if isinstance(part, Summary))
    strides = sorted({part.stride for part in parts if isinstance(part, Strided)})
    # A multiple of another stride adds no pair.
    strides = [s for n, s in enumerate(strides) if all(s % other for other in strides[:n])]
    if any(isinstance(part, Dense) for part in parts) or 1 in strides:
        return Layout(pattern, None, Everything(Dense(), room))
    if any(type(part) not in _WORDS for part in parts) or len(strides) + bool(summaries) > 1:
        return Layout(pattern, None, Everything(pattern, room))
    rest = None
    if strides:
        rest = Residues(strides[0], room)
    elif summaries:
        rest = Columns(summaries, room)
    return Layout(pattern, Recent(min(max(near), room)) if near else None, rest)
