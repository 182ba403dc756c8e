"""From patterns to tiles: which rectangles of the score matrix are computed, and their masks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf, lcm

import torch
from torch import Tensor

from sparse_tx.patterns import BlockLocal, Dense, Local, Pattern, Strided, Summary

# Queries per tile. Taller tiles waste more of a local window's rectangle and of a triangle, lower
# ones make the matrix products too small. In windows alone, half a window within these.
_ROWS = 128
_FEWEST_ROWS = 64
_COLUMN_ROWS = 48
# Scores per tile: 2 MiB in float32, so that a tile's passes over them stay in cache.
_SCORES = 1 << 19
# Numbers in all buffers of a pass together, 2 MiB in float32, where a single tile is no larger.
_WORKSPACE = 1 << 19


@dataclass(frozen=True)
class Tile:
    """The queries ``rows`` against the first ``n_prefix`` prefix keys and the interval ``keys``.

    ``bias`` is 0 where a pair is allowed and -inf where not, for the last ``bias.shape[-1]`` keys:
    ``(groups or 1, 1, rows, <= keys)``. All earlier keys are allowed.
    """

    rows: slice
    keys: slice
    n_prefix: int
    bias: Tensor
    has_empty_rows: bool

    @property
    def n_keys(self) -> int:
        return self.n_prefix + self.keys.stop - self.keys.start


@dataclass(frozen=True)
class Sweep:
    """Tiles over one view ``(B, G, H, M, D)`` of some batch entries and heads of q, k and v.

    Row m of the view's group g is the position ``first + g * group_step + m * stride``; no position
    occurs twice. ``merges`` says that earlier sweeps have computed other keys of the same queries;
    ``writes_first``, that this sweep reads all keys, in ascending order, and before any other.
    """

    tiles: tuple[Tile, ...]
    batch: slice
    heads: slice
    length: int
    stride: int = 1
    first: int = 0
    group_step: int = 1
    groups: int = 1
    prefix: Tensor | None = None
    merges: bool = False
    writes_first: bool = False

    def view(self, x: Tensor) -> Tensor:
        """See ``(B, H, T, D)`` as this sweep does, without a copy: ``(B, G, H, M, D)``."""
        x = x[self.batch, self.heads]
        b, h, t, d = x.stride()
        return x.as_strided(
            (x.shape[0], self.groups, x.shape[1], self.length, x.shape[3]),
            (b, t * self.group_step, h, t * self.stride, d),
            x.storage_offset() + self.first * t,
        )


def is_dense(pattern: Pattern, T: int) -> bool:
    """Whether the pattern allows every causal pair among T positions."""
    return any(
        isinstance(part, Dense)
        or (isinstance(part, Local) and part.window >= T)
        or (isinstance(part, BlockLocal) and part.length >= T)
        or (isinstance(part, Strided) and part.stride == 1)
        for part in pattern.parts
    )


def plan(
    heads: tuple[Pattern, ...], B: int, T: int, D: int, device: torch.device
) -> Iterable[Sweep]:
    """Sweeps that together compute every allowed pair of every head exactly once.

    A plan is kept for the next call, as a tuple, unless nearly every tile has a mask of its own.
    """
    if all(_masks_repeat(pattern) for pattern in heads):
        return _kept_plan(heads, B, T, D, device)
    return _plan(heads, B, T, D, device)


@lru_cache(maxsize=32)
def _kept_plan(heads, B: int, T: int, D: int, device) -> tuple[Sweep, ...]:
    return tuple(_plan(heads, B, T, D, device))


def _masks_repeat(pattern: Pattern) -> bool:
    """Whether many tiles share a mask: columns do unless they leave out more than windows."""
    strided = sum(isinstance(part, Strided) for part in pattern.parts)
    windows = sum(isinstance(part, Local) for part in pattern.parts)
    return strided == 0 or (strided == 1 and windows == len(pattern.parts) - 1)


def _plan(heads, B: int, T: int, D: int, device) -> Iterator[Sweep]:
    for pattern, chosen in group_heads(heads):
        parts = (Dense(),) if is_dense(pattern, T) else tuple(dict.fromkeys(pattern.parts))
        done = tuple(part for part in parts if not isinstance(part, Strided))
        if done:
            yield from _in_rows(done, chosen, B, T, D, device)
        for part in parts:
            if isinstance(part, Strided):
                yield from _in_columns(part, done, chosen, B, T, D, device)
                done += (part,)


def group_heads(heads: tuple[Pattern, ...]) -> list[tuple[Pattern, range]]:
    """Group heads with equal patterns; each group is evenly spaced, so that slicing selects it."""
    groups: dict[Pattern, list[int]] = {}
    for head, pattern in enumerate(heads):
        groups.setdefault(pattern, []).append(head)
    found = []
    for pattern, members in groups.items():
        step = members[1] - members[0] if len(members) > 1 else 1
        spaced = range(members[0], members[-1] + 1, step)
        if list(spaced) == members:
            found.append((pattern, spaced))
        else:
            found += [(pattern, range(head, head + 1)) for head in members]
    return found


def split(heads: range, B: int, room: int) -> Iterator[tuple[slice, slice]]:
    """Cut batch entries, then heads, into even pieces of at most ``room`` (entry, head) pairs."""
    per_batch = _even(B, room // len(heads))
    per_head = _even(len(heads), room)
    for b in range(0, B, per_batch):
        for h in range(0, len(heads), per_head):
            piece = heads[h : h + per_head]
            yield slice(b, b + per_batch), slice(piece.start, piece.stop, piece.step)


def _even(length: int, most: int) -> int:
    """The size of the fewest pieces of at most ``most``, at least 1, that make up ``length``."""
    return ceil(length / ceil(length / max(1, most)))


def _room(height: int, n_keys: int, n_prefix: int, D: int) -> int:
    """How many (entry, head, group) tiles of this shape the workspace holds side by side.

    Of each it holds the scores and their gradient, keys and values, two gradients of the prefix,
    and queries and gradients of outputs.
    """
    return max(1, _WORKSPACE // (2 * height * n_keys + 2 * (n_keys + n_prefix + height) * D))


# --- In rows: consecutive queries, intervals of keys, summary columns before them ---------------


def _in_rows(parts, heads: range, B: int, T: int, D: int, device) -> Iterator[Sweep]:
    prefix = _summary_positions(parts, T, device)
    positions = [] if prefix is None else prefix.tolist()
    height = _ROWS
    if all(isinstance(part, Local) for part in parts):
        height = max(_FEWEST_ROWS, min(_ROWS, max(part.window for part in parts) // 2))
    widest = len(positions) + max(_interval_width(part, T, height) for part in parts)
    height = max(16, min(height, _SCORES // widest))
    edge = min((part.length for part in parts if isinstance(part, BlockLocal)), default=T)
    tiles, start, n_prefix = [], 0, 0
    while start < T:
        stop = min(T, _next_edge(start, height, edge))
        low = min([start, *_interval_starts(parts, start)])
        while n_prefix < len(positions) and positions[n_prefix] < low:
            n_prefix += 1
        # Where the last query reads the first key of an interval, all queries read all of it, and
        # only the tile's own square needs a mask.
        whole = any(not isinstance(p, Summary) and p.allows(stop - 1, low) for p in parts)
        settled = start if whole else low
        bias, empty = _row_bias(parts, settled, start, stop, device)
        empty = empty and n_prefix == 0 and settled == low
        tiles.append(Tile(slice(start, stop), slice(low, stop), n_prefix, bias, empty))
        start = stop
    room = _room(height, min(T, widest), len(positions), D)
    # One tile after another packs each key once, several at once some keys twice: that pays where
    # single tiles are small.
    alone = prefix is not None or room < 4 * B * len(heads)
    if not alone:
        tiles, alike = _take_alike(tiles)
        yield from _side_by_side(alike, heads, B, room)
    if tiles:
        for batch, chosen in split(heads, B, room):
            yield Sweep(tuple(tiles), batch, chosen, T, prefix=prefix, writes_first=alone)


def _take_alike(tiles: list[Tile]) -> tuple[list[Tile], list[Tile]]:
    """Part the tiles into a rest and a run, as long as any, of equal shape, mask and distance."""

    def kind(tile: Tile) -> tuple[int, int, int]:
        return tile.rows.stop - tile.rows.start, tile.n_keys, id(tile.bias)

    first = best = (0, 0)
    for n, tile in enumerate(tiles):
        follows = n > 0 and kind(tile) == kind(tiles[n - 1])
        first = (first[0], n + 1) if follows else (n, n + 1)
        best = max(best, first, key=lambda run: run[1] - run[0])
    if best[1] - best[0] < 2:
        return tiles, []
    return tiles[: best[0]] + tiles[best[1] :], tiles[best[0] : best[1]]


def _side_by_side(tiles: list[Tile], heads: range, B: int, room: int) -> Iterator[Sweep]:
    """Compute tiles of one shape together, as groups of a view, for larger products."""
    if not tiles:
        return
    model, n_keys = tiles[0], tiles[0].n_keys
    spacing = tiles[1].rows.start - model.rows.start
    # Intervals of neighbours overlap; every so many tiles apart they do not.
    apart = ceil(n_keys / spacing)
    rows = slice(n_keys - (model.rows.stop - model.rows.start), n_keys)
    tile = Tile(rows, slice(0, n_keys), 0, model.bias, model.has_empty_rows)
    at_once = max(1, room // (B * len(heads)))
    for phase in range(apart):
        disjoint = tiles[phase::apart]
        for n in range(0, len(disjoint), at_once):
            groups = disjoint[n : n + at_once]
            first = groups[0].keys.start
            for batch, chosen in split(heads, B, room // len(groups)):
                yield Sweep(
                    (tile,),
                    batch,
                    chosen,
                    n_keys,
                    first=first,
                    group_step=apart * spacing,
                    groups=len(groups),
                )


def _summary_positions(parts, T: int, device) -> Tensor | None:
    """The positions that some summary part reads, ascending: ``(n,)`` int64."""
    summaries = [part for part in parts if isinstance(part, Summary)]
    if not summaries:
        return None
    keys = torch.arange(T, device=device)
    read = torch.zeros(T, dtype=torch.bool, device=device)
    for part in summaries:
        read |= part.allows(T, keys)
    return read.nonzero().squeeze(1)


def _interval_width(part: Pattern, T: int, height: int) -> int:
    """A bound on the keys of the interval of a tile of ``height`` queries."""
    match part:
        case Dense():
            return T
        case Local(window):
            return min(T, window + height)
        case BlockLocal(length):
            return min(T, max(length, height))
    return min(T, height)


def _interval_starts(parts, query: int) -> list[int]:
    """Where the intervals begin that ``query`` reads; later queries' begin no earlier."""
    return [p.combs(query)[0].start for p in parts if not isinstance(p, Summary)]


def _next_edge(start: int, height: int, edge: int) -> int:
    """Where the tile from ``start`` ends: some whole short blocks, or within one long block."""
    if edge <= height:
        return start + height // edge * edge
    return min(start + height, (start // edge + 1) * edge)


def _row_bias(parts, low: int, start: int, stop: int, device) -> tuple[Tensor, bool]:
    # A mask depends on where the tile stands within the blocks, and on nothing else: counting
    # positions from a block's edge near it gives the same few masks for the whole sequence.
    period = lcm(1, *(part.length for part in parts if isinstance(part, BlockLocal | Summary)))
    shift = low - low % period
    return _cached_bias(parts, low - shift, start - shift, stop - shift, device)


@lru_cache(maxsize=64)
def _cached_bias(parts, low: int, start: int, stop: int, device) -> tuple[Tensor, bool]:
    queries = torch.arange(start, stop, device=device)[:, None]
    keys = torch.arange(low, stop, device=device)[None, :]
    allowed = torch.zeros(stop - start, stop - low, dtype=torch.bool, device=device)
    for part in parts:
        allowed |= part.allows(queries, keys)
    return _as_bias(allowed)


def _as_bias(allowed: Tensor) -> tuple[Tensor, bool]:
    """From ``(..., rows, keys)`` bool: ``(groups or 1, 1, rows, keys)``, and if a row is empty."""
    bias = torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -inf)
    bias = bias.view(-1, 1, *allowed.shape[-2:])
    return bias, not bool(allowed.any(-1).all())


# --- In columns: one column for each residue modulo the stride ----------------------------------


def _in_columns(
    part: Strided, done, heads: range, B: int, T: int, D: int, device
) -> Iterator[Sweep]:
    """Sweep all residue classes of one strided part, leaving out the pairs that ``done`` allows."""
    rows, longer = divmod(T, part.stride)
    # The first T mod stride columns are one row longer than the others.
    for first, groups, length in ((0, longer, rows + 1), (longer, part.stride - longer, rows)):
        if length == 0:
            continue
        height = max(16, min(_COLUMN_ROWS, _SCORES // length))
        height = ceil(length / ceil(length / height))  # tiles of one size
        room = _room(height, length, 0, D)
        at_once = max(1, room // (B * len(heads)))
        for g in range(first, first + groups, at_once):
            n = min(at_once, first + groups - g)
            columns = _column_tiles(part, done, g, n, length, height, device)
            # Where every tile has a mask of its own, masks are made one at a time: all of them
            # would take memory that grows with the square of T.
            one_at_a_time = not all(isinstance(other, Local) for other in done)
            for tiles in ((tile,) for tile in columns) if one_at_a_time else (tuple(columns),):
                for batch, chosen in split(heads, B, room // n):
                    yield Sweep(
                        tiles,
                        batch,
                        chosen,
                        length,
                        part.stride,
                        g,
                        groups=n,
                        merges=bool(done),
                        writes_first=not done,
                    )


def _column_tiles(part, done, first: int, groups: int, length: int, height: int, device):
    s = part.stride
    for start in range(0, length, height):
        stop = min(length, start + height)
        if all(isinstance(other, Local) for other in done):
            # Only the nearest rows of a column can be in a window, or in the future.
            near = max((ceil(other.window / s) for other in done), default=0)
            low = max(0, start - near)
            bias, empty = _cached_column_bias(near, low - start, stop - start, device)
            empty = empty and low == 0
        else:
            low = 0
            group = torch.arange(first, first + groups, device=device)[:, None, None]
            queries = torch.arange(start, stop, device=device)[:, None] * s + group
            keys = torch.arange(stop, device=device) * s + group
            allowed = part.allows(queries, keys)
            for other in done:
                allowed &= ~other.allows(queries, keys)
            bias, empty = _as_bias(allowed)
        yield Tile(slice(start, stop), slice(0, stop), 0, bias, empty)


@lru_cache(maxsize=64)
def _cached_column_bias(near: int, low: int, rows: int, device) -> tuple[Tensor, bool]:
    """Within a column: keys at least ``near`` rows back, beginning at ``low`` (0 is the tile)."""
    queries = torch.arange(rows, device=device)[:, None]
    keys = torch.arange(low, rows, device=device)[None, :]
    return _as_bias(queries - keys >= near)
