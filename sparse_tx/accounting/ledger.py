"""Who holds how many bytes, from moment to moment."""

from collections import Counter
from dataclasses import dataclass

# The C library of Linux takes larger blocks from the system each time and gives them back at once
# (M_MMAP_THRESHOLD_MAX of mallopt(3)); others it mostly keeps for the next that asks.
LARGE = 32 * 1024**2


@dataclass(frozen=True, eq=False)
class Held:
    """Memory that somebody holds: ``size`` bytes, in the name of ``part``."""

    part: str
    size: int


class Ledger:
    """A running account of memory, which remembers its highest moment.

    Attributes:
        total: bytes that are held now.
        peak: the most that were ever held.
        at_peak: who held them then, by part, in bytes.
        taken_large: bytes of all blocks above ``LARGE`` bytes that were taken, one after another.
        times: how often a block that is taken now counts in ``taken_large``. Work that repeats,
            taking and giving back the same blocks each time, is entered once, with its number here.
    """

    def __init__(self):
        self.total = self.peak = self.taken_large = 0
        self.times = 1
        self.at_peak: dict[str, int] = {}
        self._held: Counter[str] = Counter()

    def take(self, part: str, size: int) -> Held:
        """Begin to hold ``size`` bytes in the name of ``part``."""
        if size > LARGE:
            self.taken_large += size * self.times
        self._held[part] += size
        self.total += size
        if self.total > self.peak:
            self.peak = self.total
            self.at_peak = {part: held for part, held in self._held.items() if held}
        return Held(part, size)

    def give(self, *held: Held) -> None:
        """Let go of what was taken."""
        for one in held:
            self._held[one.part] -= one.size
            self.total -= one.size
