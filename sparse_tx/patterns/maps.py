"""The sets of two dimensions: positions of a map, row by row, as a sequence.

Position p of a map with rows of ``width`` stands in row ``p // width`` and column ``p % width``.
So *rows* are the blocks of the paper's fixed pattern and *columns* its strided set, both as long as
a row; what they were in a text they are in a map without the triangle. Rows and columns in turn
connect every pair of positions, as do tiles and lattices where tiles divide the map.

Sources: criss-cross attention is of CCNet (Huang et al. 2019, arXiv:1811.11721); tiles and
lattices in turn are the blocks and grids of MaxViT (Tu et al. 2022, arXiv:2204.01697).
"""

from dataclasses import dataclass

from sparse_tx.errors import UserError
from sparse_tx.patterns.algebra import BlockLocal, Merged, Partition, Strided
from sparse_tx.patterns.keyset import Comb


class _OfMap(Merged):
    """Sets of a map that are merged of those of a sequence."""

    @property
    def map_widths(self):
        return frozenset({self.width})


@dataclass(frozen=True)
class Rows(_OfMap):
    """The positions of the query's own row."""

    width: int
    word = "rows"

    def __post_init__(self):
        self._require_positive("width")

    @property
    def members(self):
        return (BlockLocal(self.width),)


@dataclass(frozen=True)
class Columns(_OfMap):
    """The positions of the query's own column."""

    width: int
    word = "columns"

    def __post_init__(self):
        self._require_positive("width")

    @property
    def members(self):
        return (Strided(self.width),)


@dataclass(frozen=True)
class CrissCross(_OfMap):
    """The query's own row and its column; the query itself, which is in both, counts once."""

    width: int
    word = "crisscross"

    def __post_init__(self):
        self._require_positive("width")

    @property
    def members(self):
        return Rows(self.width), Columns(self.width)


@dataclass(frozen=True)
class _Squares(Partition):
    """What tiles and lattices share: an ``edge``, and that they have no use in a text."""

    width: int
    edge: int

    def __post_init__(self):
        self._require_positive("width", "edge")
        if self.edge > self.width:
            raise UserError(
                f"a '{self.word}' pattern of edge {self.edge} on a map {self.width} wide; the edge"
                f" can be {self.width} at most"
            )

    @property
    def counts_by_mirror(self):
        return False

    @property
    def map_widths(self):
        return frozenset({self.width})

    def check_causal(self):
        raise UserError(
            f"'{self}' has no causal form: it belongs to maps, whose positions have no order (--map"
            " of the command, causal=False of sparse_attention); in a text take local, block,"
            " strided, rows or columns"
        )

    def allows(self, q, k, causal=True):
        if causal:
            self.check_causal()
        return self.relates(q, k)

    @property
    def conditions(self):
        self.check_causal()

    def combs_of_queries(self, queries):
        self.check_causal()

    def retained_combs(self, now):
        self.check_causal()


@dataclass(frozen=True)
class Tiles(_Squares):
    """The query's own square of ``edge`` rows and columns; those at the map's far edges are cut."""

    word = "tiles"

    def class_of(self, i):
        row, column = i // self.width, i % self.width
        return row // self.edge * self.width + column // self.edge

    def combs_among(self, i, T):
        row, column = i // self.width, i % self.width
        top, left = row - row % self.edge, column - column % self.edge
        right = min(self.width, left + self.edge)
        bottom = min(top + self.edge, -(-T // self.width))
        starts = (r * self.width for r in range(top, bottom))
        return tuple(Comb(s + left, min(T, s + right)) for s in starts if s + left < T)


@dataclass(frozen=True)
class Lattice(_Squares):
    """The positions whole multiples of ``edge`` away, in rows and in columns."""

    word = "lattice"

    def class_of(self, i):
        row, column = i // self.width, i % self.width
        return row % self.edge * self.edge + column % self.edge

    def combs_among(self, i, T):
        row, first = i // self.width % self.edge, i % self.width % self.edge
        starts = range(row * self.width, T, self.edge * self.width)
        return tuple(
            Comb(s, min(T, s + self.width), self.edge, s + first) for s in starts if s + first < T
        )
