"""Slots of the KV cache: how many keys a head has room for and is left with, by its pattern alone.

Windows and blocks share a ring as long as the longest of them. Beside it lies what reaches further
back: the summary columns, or, of a stride, a row of slots for each residue. Sets that cannot be
told apart like this, such as two strides, are picked out of all positions.
"""

from dataclasses import dataclass

from sparse_tx.patterns import BlockLocal, Dense, KeySet, Local, Pattern, Strided, Summary


@dataclass(frozen=True)
class Slots:
    """Slots of one head's cache.

    Attributes:
        ring: those of windows and blocks.
        rest: those of everything else.
        filled: the slots that a text leaves filled which is as long as there is room for.
        picked: whether what a step reads is picked out one by one.
        is_indexed: whether a table says which column has which slot.
    """

    ring: int
    rest: int
    filled: int
    picked: bool = False
    is_indexed: bool = False

    @property
    def total(self) -> int:
        """All of them."""
        return self.ring + self.rest


def count_slots(pattern: Pattern, room: int) -> Slots:
    """Count the slots of a head's cache for texts of up to ``room`` tokens."""
    parts = pattern.parts
    near = [part for part in parts if isinstance(part, Local | BlockLocal)]
    summaries = [part for part in parts if isinstance(part, Summary)]
    strides = _strides_that_count(pattern)
    if strides == [1] or any(isinstance(part, Dense) for part in parts):
        return Slots(ring=0, rest=room, filled=room)
    if len(strides) + bool(summaries) > 1:
        return Slots(ring=0, rest=room, filled=room, picked=True)
    ring = filled = 0
    if near:
        ring = min(room, max(p.window if isinstance(p, Local) else p.length for p in near))
        filled = room - min(part.retained_combs(room - 1)[0].start for part in near)
    if strides:
        (stride,) = strides
        rows = min(stride, room)
        return Slots(ring=ring, rest=rows * -(-room // stride), filled=filled + room)
    columns = len(KeySet(*(comb for part in summaries for comb in part.combs(room - 1))))
    return Slots(ring=ring, rest=columns, filled=filled + columns, is_indexed=bool(summaries))


def _strides_that_count(pattern: Pattern) -> list[int]:
    """The strides of a pattern, without multiples of others, which add no pair."""
    strides = sorted({part.stride for part in pattern.parts if isinstance(part, Strided)})
    return [s for n, s in enumerate(strides) if all(s % other for other in strides[:n])]
