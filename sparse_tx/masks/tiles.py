"""Which square tiles of the (query, key) plane a pattern touches, without visiting its pairs.

A kernel that works tile by tile skips the *empty* tiles, runs the *full* ones without a mask and
masks the *partial* ones. All three follow from the combs of a tile's queries: away from its ends a
comb is periodic, so the pairs in every tile are counted in closed form; only tiles that an end of
some comb falls into are counted query by query.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparse_tx.errors import UserError
from sparse_tx.masks.heads import one_head
from sparse_tx.patterns import Comb, Pattern
from sparse_tx.patterns.given import PatternLike

EMPTY, PARTIAL, FULL = 0, 1, 2


class TileCounts(NamedTuple):
    """How many of the causal tiles (those that hold some key up to some query) are of each kind."""

    empty: int
    partial: int
    full: int

    @property
    def live(self) -> int:
        """The tiles that a kernel has to visit."""
        return self.partial + self.full


@dataclass(frozen=True, eq=False)
class TileLayout:
    """The live tiles of ``T`` positions, row by row.

    Query tile r holds the queries ``[r * tile_size, (r + 1) * tile_size)`` that are below ``T``;
    key tiles likewise. The live key tiles of query tile r are
    ``key_tiles[offsets[r] : offsets[r + 1]]``, ascending, with ``is_full`` beside them.

    Attributes:
        T: how many positions, in tokens.
        tile_size: edge of a tile, in tokens.
        offsets: ``(n_tiles + 1,)`` int64.
        key_tiles: ``(live,)`` int32.
        is_full: ``(live,)`` bool, whether every pair of positions below ``T`` is allowed.
    """

    T: int
    tile_size: int
    offsets: np.ndarray
    key_tiles: np.ndarray
    is_full: np.ndarray

    @property
    def n_tiles(self) -> int:
        """How many tiles an edge of the plane has; the last may reach past ``T``."""
        return len(self.offsets) - 1

    def counts(self) -> TileCounts:
        """Count the causal tiles of each kind."""
        causal = self.n_tiles * (self.n_tiles + 1) // 2
        full = int(np.count_nonzero(self.is_full))
        return TileCounts(causal - len(self.key_tiles), len(self.key_tiles) - full, full)

    def useful_share(self, pattern: Pattern) -> float:
        """The share of the live tiles' area that ``pattern``, which they were made of, allows."""
        return pattern.count_pairs(self.T) / max(1, self.counts().live * self.tile_size**2)

    def to_dense(self) -> np.ndarray:
        """The kind of every tile: ``(n_tiles, n_tiles)`` int8 of EMPTY, PARTIAL and FULL."""
        kinds = np.full((self.n_tiles, self.n_tiles), EMPTY, dtype=np.int8)
        rows = np.repeat(np.arange(self.n_tiles), np.diff(self.offsets))
        kinds[rows, self.key_tiles] = np.where(self.is_full, FULL, PARTIAL)
        return kinds


def tile_layout(pattern: PatternLike, T: int, tile_size: int) -> TileLayout:
    """Find the live tiles of one head's pattern, exactly.

    Takes O(T + causal tiles) time and O(T + live tiles) memory. Only where several sets of a union
    could fill a tile together, and none does alone, are that tile's pairs looked at.

    Args:
        pattern: one head's pattern, or its notation.
        T: how many positions, in tokens; any number, not only multiples of the tile.
        tile_size: edge of a tile, in tokens.

    Raises:
        UserError: ``T`` or ``tile_size`` is below 1, or the pattern is not of a single head.
    """
    if T < 1 or tile_size < 1:
        raise UserError(
            f"tiles of {tile_size} over {T} positions; both must be whole numbers, 1 or more"
        )
    pattern = one_head(pattern)
    n_tiles = -(-T // tile_size)
    live_tiles, full_tiles = [], []
    for row in range(n_tiles):
        queries = range(row * tile_size, min(T, (row + 1) * tile_size))
        pairs = pairs_of_queries(pattern, queries, tile_size)  # (parts, row + 1)
        area = np.full(row + 1, len(queries) * tile_size)
        area[-1] = len(queries) * len(queries)  # the diagonal tile is as narrow as it is low
        live = pairs.any(axis=0)
        full = (pairs == area).any(axis=0)
        doubtful = ~full & ((pairs > 0).sum(axis=0) > 1) & (pairs.sum(axis=0) >= area)
        for key_tile in np.flatnonzero(doubtful):
            q = np.arange(queries.start, queries.stop)[:, None]
            k = np.arange(key_tile * tile_size, min(T, (key_tile + 1) * tile_size))
            full[key_tile] = np.all(pattern.allows(q, k))
        live_tiles.append(np.flatnonzero(live).astype(np.int32))
        full_tiles.append(full[live])
    offsets = np.zeros(n_tiles + 1, dtype=np.int64)
    np.cumsum([len(tiles) for tiles in live_tiles], out=offsets[1:])
    return TileLayout(T, tile_size, offsets, np.concatenate(live_tiles), np.concatenate(full_tiles))


def pairs_of_queries(pattern: Pattern, queries: range, tile_size: int) -> np.ndarray:
    """Count the pairs that some successive queries have in each key tile, per set of the pattern.

    Args:
        pattern: one head's pattern.
        queries: the queries, not empty, with step 1.
        tile_size: width of a key tile, in tokens.

    Returns:
        ``(parts, n)`` int64 over the ``n`` key tiles up to the last query: for each of
        ``pattern.parts`` its own count, so that a pair in two sets of a union counts in both.
    """
    n_tiles = -(-queries.stop // tile_size)
    combs_of_parts = zip(*map(pattern.combs, queries), strict=True)
    return np.stack([_pairs_of_combs(combs, n_tiles, tile_size) for combs in combs_of_parts])


def _pairs_of_combs(combs: tuple[Comb, ...], n_tiles: int, tile_size: int) -> np.ndarray:
    """Sum over one comb per query: its positions in each of the first ``n_tiles`` key tiles."""
    start, stop, first = np.array([(c.start, c.stop, c.first) for c in combs]).T
    modulus, width = combs[0].modulus, combs[0].width
    pairs = np.zeros(n_tiles, dtype=np.int64)

    # In the tiles from inner to outer no comb begins or ends.
    inner, outer = -(-start.max() // tile_size), stop.min() // tile_size
    if inner < outer:
        edges = np.arange(inner, outer + 1) * tile_size
        pairs[inner:outer] = np.diff(_teeth_below(edges, np.sort(first % modulus), modulus, width))
    else:
        inner = outer = -(-stop.max() // tile_size)

    ends = np.r_[start.min() // tile_size : inner, outer : -(-stop.max() // tile_size)]
    low, high = (  # each (queries, ends)
        np.clip((ends + side)[None, :] * tile_size, start[:, None], stop[:, None]) - first[:, None]
        for side in (0, 1)
    )
    pairs[ends] = np.sum(
        (high // modulus - low // modulus) * width
        + np.minimum(high % modulus, width)
        - np.minimum(low % modulus, width),
        axis=0,
    )
    return pairs


def _teeth_below(edges: np.ndarray, first: np.ndarray, modulus: int, width: int) -> np.ndarray:
    """Sum over combs without ends: their positions below each edge, up to one common constant.

    ``first``, ascending in ``[0, modulus)``, holds where each comb's teeth begin. With
    ``edge = period * modulus + rest``, a comb has ``width`` positions in every whole period and
    ``min(., width)`` in the one that the edge cuts; the sums over combs are differences of prefix
    sums, so that no (combs, edges) array and nothing as long as the modulus is made.
    """
    period, rest = edges // modulus, edges % modulus
    prefix = np.concatenate([[0], np.cumsum(first)])
    n = len(first)

    def cut(x, low, high):  # sum of x - first over the combs number low to high
        return x * (high - low) - (prefix[high] - prefix[low])

    begun = np.searchsorted(first, rest, side="right")  # combs whose current period has begun
    done = np.searchsorted(first, rest - width, side="right")  # ... and whose tooth is complete
    done_before = np.searchsorted(first, modulus + rest - width, side="right")
    whole = width * (period * n - (n - begun))
    return (
        whole
        + width * (done + done_before - begun)
        + cut(rest, done, begun)
        + cut(modulus + rest, done_before, n)
    )
