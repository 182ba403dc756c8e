"""What a kernel that works tile by tile computes for nothing, without a visit to every tile."""

from dataclasses import dataclass
from functools import lru_cache, reduce
from math import gcd
from operator import or_

from sparse_tx.accounting.heads import require_count
from sparse_tx.patterns import Comb, Dense, Pattern, Strided


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The square tiles of the (query, key) plane that a head's pattern makes a kernel visit.

    Attributes:
        tile_size: edge of a tile, in tokens.
        causal: tiles that dense causal attention visits.
        live: tiles with at least one attended pair.
        pairs: attended pairs.
    """

    tile_size: int
    causal: int
    live: int
    pairs: int

    @property
    def live_share(self) -> float:
        """The share of dense attention's tiles that is left to visit."""
        return self.live / self.causal

    @property
    def useful_share(self) -> float:
        """The share of the live tiles' area that is attended; the rest is waste."""
        return self.pairs / max(1, self.live * self.tile_size**2)


def tiles_in_place(pattern: Pattern, T: int, tile_size: int) -> Tiling:
    """Count the tiles of a head whose positions stand in their own order, exactly.

    Each row of tiles is one integer with a bit for every tile. Takes O(T / tile_size) operations on
    such integers, of T / tile_size bits, and O(T) short ones.

    Args:
        pattern: one head's pattern.
        T: how many positions, in tokens; any number, not only multiples of the tile.
        tile_size: edge of a tile, in tokens.

    Raises:
        UserError: ``T`` or ``tile_size`` is below 1.
    """
    require_count("T", T, "positions")
    require_count("tile_size", tile_size, "tokens")
    live = 0
    for start in range(0, T, tile_size):
        combs = pattern.combs_of_queries(range(start, min(T, start + tile_size)))
        live += reduce(or_, (_tiles_of(comb, tile_size, T) for comb in combs)).bit_count()
    n_tiles = -(-T // tile_size)
    return Tiling(
        tile_size=tile_size,
        causal=Dense().count_pairs(n_tiles),
        live=live,
        pairs=pattern.count_pairs(T),
    )


def tiles_in_columns(pattern: Strided, T: int, tile_size: int) -> Tiling:
    """Count the tiles of a strided head whose positions are sorted into columns, exactly.

    Positions of one residue modulo the stride make a column, a sequence of its own within which
    attention is dense. ``causal`` still counts the tiles of dense attention over all ``T``.

    Arguments and errors as of ``tiles_in_place``.
    """
    require_count("T", T, "positions")
    require_count("tile_size", tile_size, "tokens")
    rows, longer = divmod(T, pattern.stride)
    dense, live = Dense(), 0
    for columns, length in ((longer, rows + 1), (pattern.stride - longer, rows)):
        live += columns * dense.count_pairs(-(-length // tile_size))
    return Tiling(
        tile_size=tile_size,
        causal=dense.count_pairs(-(-T // tile_size)),
        live=live,
        pairs=pattern.count_pairs(T),
    )


def _tiles_of(comb: Comb, tile_size: int, T: int) -> int:
    """The tiles that hold a position of ``comb``, as bits."""
    if comb.start >= comb.stop:
        return 0
    first, last = comb.start // tile_size, (comb.stop - 1) // tile_size
    if comb.is_interval:
        return (2 << last) - (1 << first)
    n_tiles = -(-T // tile_size)
    teeth = _tiles_of_teeth(comb.modulus, comb.first % comb.modulus, comb.width, tile_size, n_tiles)
    tiles = teeth & ((1 << last) - 1) & -(2 << first)  # those that no end of the comb cuts
    for tile in (first, last):
        start, stop = tile * tile_size, (tile + 1) * tile_size
        cut = Comb(
            max(start, comb.start), min(stop, comb.stop), comb.modulus, comb.first, comb.width
        )
        tiles |= bool(len(cut)) << tile
    return tiles


@lru_cache(maxsize=1024)
def _tiles_of_teeth(modulus: int, first: int, width: int, tile_size: int, n_tiles: int) -> int:
    """The tiles, as at least ``n_tiles`` bits, that an endless comb has a position in."""
    period = min(n_tiles, modulus // gcd(modulus, tile_size))  # in tiles, after which all repeats
    tiles = 0
    for tooth in range(first - modulus, period * tile_size, modulus):
        begin, end = max(0, tooth), tooth + width  # the tooth before the first may reach past 0
        if begin < end:
            tiles |= (2 << (end - 1) // tile_size) - (1 << begin // tile_size)
    tiles &= (1 << period) - 1
    while period < n_tiles:
        tiles |= tiles << period
        period *= 2
    return tiles
