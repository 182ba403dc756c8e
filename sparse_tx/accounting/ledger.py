"""Who holds how many bytes, from moment to moment."""

from collections import Counter
from dataclasses import dataclass


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
    """

    def __init__(self):
        self.total = self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._held: Counter[str] = Counter()

    def take(self, part: str, size: int) -> Held:
        """Begin to hold ``size`` bytes in the name of ``part``."""
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
