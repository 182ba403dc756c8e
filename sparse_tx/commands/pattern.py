"""``sparse-tx pattern``: show a pattern, count its pairs, or check what its layers connect."""

import json
import sys
from dataclasses import dataclass
from math import lcm, prod

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sparse_tx.commands.pattern_map import map_query, map_size
from sparse_tx.commands.shell import CommandParser, run_command
from sparse_tx.commands.tables import table_lines
from sparse_tx.errors import UserError
from sparse_tx.masks import (
    TileCounts,
    fits_text,
    length_that_shows,
    save_map_png,
    save_png,
    text_map,
    text_picture,
    tile_layout,
)
from sparse_tx.masks.cells import counted, numbered
from sparse_tx.patterns import Dense, Layer, Local, Pattern, Stack, parse_pattern, reachability
from sparse_tx.patterns.given import require_width
from sparse_tx.patterns.reachability import sources_at_once

COMPLETE, INCOMPLETE = 0, 1

MOST_LAYERS_OR_HEADS = 10_000
# Positions of a picture; a second shows some 400,000.
MOST_SHOWN = 1 << 24

DEFAULT_TILE_SIZE = 128
# Finding the tiles takes a few seconds beyond this length; then they are counted only when asked.
TILES_UP_TO = 131_072

# Reachability of a longer stack is refused. The rates are of one CPU core.
CHECK_SECONDS = 120
_SECONDS_PER_QUERY = 5e-6
_SECONDS_PER_PAIR = 4e-8
_SECONDS_PER_BYTE = 4e-10


def main(argv: list[str] | None = None) -> int:
    """Run the command; return 0, for an incomplete ``check`` 1, and for a mistake 2."""
    return run_command(_main, argv)


def _parser() -> CommandParser:
    parser = CommandParser(prog="sparse-tx pattern", description=__doc__)
    parser.add_argument(
        "action",
        choices=["show", "count", "check"],
        help="show: a picture; count: exact pairs and tiles; check: whether every position reaches"
        " every later one through the layers",
    )
    parser.add_argument("notation", type=str, help="such as 'local:128*3,strided:128'")
    parser.add_argument("--seq_len", type=int, help="tokens (show: as many as make a picture)")
    parser.add_argument(
        "--map", type=str, help="HxW positions, such as 28x28: without the triangle"
    )
    parser.add_argument("--query", type=str, help="row,column that a picture of a map looks at")
    parser.add_argument("--n_head", type=int, help="heads a layer (default: as few as fit)")
    parser.add_argument("--n_layer", type=int, help="depth (default: one round of the notation)")
    parser.add_argument("--layer", type=int, help="this layer only, counted from 0")
    parser.add_argument("--head", type=int, help="this head only, counted from 0")
    parser.add_argument("--tile_size", type=int, help=f"of counted tiles ({DEFAULT_TILE_SIZE})")
    parser.add_argument("--png", type=str, help="also draw a picture into this file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


@dataclass(frozen=True)
class Selection:
    """What the flags leave of the notation.

    Attributes:
        stack: the patterns of one round.
        layers: the distinct layers over the whole depth, each with the numbers that it has there.
        n_head: heads per layer.
        seq_len: how many positions, in tokens.
        map: rows and columns, where the positions are those of a map and there is no triangle.
        query: the position that a picture of a map looks at.
    """

    stack: Stack
    layers: dict[Layer, list[int]]
    n_head: int
    seq_len: int
    map: tuple[int, int] | None = None
    query: int = 0

    @property
    def causal(self) -> bool:
        """Whether queries read up to themselves only."""
        return self.map is None

    @property
    def dense_pairs(self) -> int:
        """What one head without a pattern would read."""
        return Dense().count_pairs(self.seq_len, self.causal)

    @property
    def n_layer(self) -> int:
        """How many layers the whole depth has."""
        return sum(map(len, self.layers.values()))

    def __str__(self) -> str:
        size = counted(self.seq_len, "position")
        if self.map:
            size = f"a map of {self.map[0]:,} x {self.map[1]:,}"
        return ", ".join(
            [
                f"{self.stack}: {size}",
                counted(self.n_head, "head"),
                counted(self.n_layer, "layer"),
            ]
        )


def _main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    selection = _selection(args)
    with Console(stderr=True).status(f"{args.action} ..."):
        if args.action == "show":
            status, text = 0, _pictures(selection, drawn=args.png is not None)
        elif args.action == "count":
            status, text = 0, _count(selection, args.tile_size, args.json)
        else:
            status, text = _check(selection, args.json)
    print(text)
    if args.png:
        if selection.map:
            save_map_png(
                selection.stack, selection.layers, args.png, *selection.map, **_seen(selection)
            )
        else:
            depth = {"n_head": selection.n_head, "n_layer": selection.n_layer}
            save_png(selection.stack, args.png, T=selection.seq_len, **depth)
        print(f"picture: {args.png}", file=sys.stderr)
    return status


def _selection(args) -> Selection:
    stack = parse_pattern(args.notation)
    for name in ("seq_len", "n_head", "n_layer", "tile_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be 1 or more")
    for name in ("n_head", "n_layer", "layer"):
        if (getattr(args, name) or 0) > MOST_LAYERS_OR_HEADS:
            raise UserError(
                f"--{name} is {getattr(args, name)}; {MOST_LAYERS_OR_HEADS} is the most"
            )
    if args.json and args.action == "show":
        raise UserError("a picture has no JSON form; --json goes with count and check")
    if args.head is not None and args.n_head is None:
        raise UserError(f"--head {args.head} of how many? Add --n_head, for example --n_head 8")
    size = map_size(args.map, {"seq_len": args.seq_len, "tile_size": args.tile_size})
    query = map_query(args.query, size)
    if size:
        require_width(stack, size)
    else:
        for layer in stack.layers:
            layer.check_causal()
    if args.seq_len is None and size is None and args.action != "show":
        raise UserError(f"'{args.action}' needs a length: add, for example, --seq_len 12288")
    n_head = args.n_head or lcm(*(len(layer.groups) for layer in stack.layers))
    n_layer = args.n_layer or max(len(stack.layers), (args.layer or 0) + 1)
    numbers = range(n_layer)
    if args.layer is not None:
        if args.layer not in numbers:
            raise UserError(
                f"layer {args.layer} of {n_layer}: layers are numbered 0 to {n_layer - 1}"
            )
        numbers = [args.layer]
        stack = Stack((stack.layer(args.layer),))
    for layer in stack.layers:
        layer.heads(n_head)  # refuses a number of heads that does not fit
    if args.head is not None:
        stack = Stack(tuple(Layer((layer.at(args.head, n_head),)) for layer in stack.layers))
        n_head = 1
    layers: dict[Layer, list[int]] = {}
    for number in numbers:
        layers.setdefault(stack.layer(number), []).append(number)
    seq_len = prod(size) if size else args.seq_len or length_that_shows(stack)
    if args.action == "show" and not size and seq_len > MOST_SHOWN:
        raise UserError(
            f"a picture of {seq_len:,} positions takes minutes and {MOST_SHOWN:,} are the most; a"
            " smaller --seq_len, a few times the stride or block, shows the same structure"
        )
    return Selection(stack, layers, n_head, seq_len, size, query)


def _seen(chosen: Selection) -> dict[str, int]:
    return {"query": chosen.query, "n_head": chosen.n_head}


def _pictures(chosen: Selection, *, drawn: bool) -> str:
    if chosen.map:
        row, column = divmod(chosen.query, chosen.map[1])
        header = f"{chosen}; row {row}, column {column} looks"
        if drawn and not fits_text(*chosen.map):
            return header
        picture = text_map(chosen.stack, chosen.layers, *chosen.map, **_seen(chosen))
        return f"{header}\n\n{picture}"
    blocks = [str(chosen)]
    for layer, numbers in chosen.layers.items():
        picture = text_picture(layer, chosen.seq_len, chosen.n_head)
        blocks.append(f"{numbered('layer', numbers)}\n{picture}")
    return "\n\n".join(blocks)


def _count(chosen: Selection, tile_size: int | None, as_json: bool) -> str:
    T, n_head = chosen.seq_len, chosen.n_head
    if chosen.causal:
        tile_size = tile_size or (DEFAULT_TILE_SIZE if T <= TILES_UP_TO else None)
    report = {
        "pattern": str(chosen.stack),
        "seq_len": T,
        "map": chosen.map,
        "n_head": n_head,
        "n_layer": chosen.n_layer,
        "tile_size": tile_size,
        "layers": [
            {"layers": numbers, **_layer_counts(layer, chosen, tile_size)}
            for layer, numbers in chosen.layers.items()
        ],
    }
    pairs = sum(entry["pairs"] * len(entry["layers"]) for entry in report["layers"])
    report |= _against_dense(pairs, chosen.dense_pairs * n_head * chosen.n_layer)
    return json.dumps(report, indent=2) if as_json else f"{chosen}\n{_counts_table(report)}"


def _against_dense(pairs: int, dense: int) -> dict:
    return {
        "pairs": pairs,
        "dense_pairs": dense,
        "share_of_dense": pairs / dense,
        "dense_over_pairs": dense / pairs if pairs else None,
    }


def _layer_counts(layer: Layer, chosen: Selection, tile_size: int | None) -> dict:
    """Counts of one layer over all its heads; heads of one pattern are counted once."""
    T, n_head = chosen.seq_len, chosen.n_head
    heads_of: dict[Pattern, list[int]] = {}
    for head, pattern in enumerate(layer.heads(n_head)):
        heads_of.setdefault(pattern, []).append(head)
    pairs_of = {pattern: pattern.count_pairs(T, chosen.causal) for pattern in heads_of}
    pairs = sum(n * len(heads_of[pattern]) for pattern, n in pairs_of.items())
    counts = {
        "pattern": str(layer),
        "heads": [
            {"heads": heads, "pattern": str(pattern), "pairs": pairs_of[pattern]}
            for pattern, heads in heads_of.items()
        ],
        **_against_dense(pairs, chosen.dense_pairs * n_head),
    }
    if tile_size:
        tiles_of = {pattern: tile_layout(pattern, T, tile_size).counts() for pattern in heads_of}
        tiles = TileCounts(
            *(
                sum(
                    getattr(tiles_of[pattern], kind) * len(heads)
                    for pattern, heads in heads_of.items()
                )
                for kind in TileCounts._fields
            )
        )
        useful = pairs / max(1, tiles.live * tile_size**2)
        counts["tiles"] = {**tiles._asdict(), "live": tiles.live, "useful_share": useful}
    return counts


def _counts_table(report: dict) -> str:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("layers", "pattern"):
        table.add_column(column, no_wrap=True)
    columns = ["pairs per head", "of dense", "dense / pattern"]
    if report["tile_size"]:
        columns += [f"live {report['tile_size']}-tiles per head", "useful"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for entry in report["layers"]:
        numbers = numbered("", entry["layers"]).lstrip("s ")
        table.add_row(numbers, entry["pattern"], *_cells(entry, report["n_head"]))
    lines = [
        *table_lines(table),
        (
            f"all layers and heads: {report['pairs']:,} pairs, dense {report['dense_pairs']:,}:"
            f" {_percent(report['share_of_dense'])} of dense,"
            f" dense / pattern {_ratio(report['dense_over_pairs'])}"
        ),
    ]
    if report["tile_size"]:
        lines.append("live: share of the causal tiles; useful: share of their area that is read")
    elif not report["map"]:
        lines.append(
            f"tiles: add --tile_size {DEFAULT_TILE_SIZE} to find the live ones (slow here)"
        )
    return "\n".join(lines)


def _cells(entry: dict, n_head: int) -> list[str]:
    counts = sorted({head["pairs"] for head in entry["heads"]})
    per_head = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    cells = [per_head, _percent(entry["share_of_dense"]), _ratio(entry["dense_over_pairs"])]
    if "tiles" in entry:
        tiles = entry["tiles"]
        live = _percent(tiles["live"] / (tiles["live"] + tiles["empty"]))
        cells += [f"{tiles['live'] / n_head:,.0f} ({live})", _percent(tiles["useful_share"])]
    return cells


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _ratio(value: float | None) -> str:
    return "none read" if value is None else f"{value:,.1f}"


def _check(chosen: Selection, as_json: bool) -> tuple[int, str]:
    T, n_head, n_layer = chosen.seq_len, chosen.n_head, chosen.n_layer
    seconds = _seconds_to_check(chosen)
    if seconds > CHECK_SECONDS:
        raise UserError(
            f"checking {T:,} positions through {counted(n_layer, 'layer')} would take about"
            f" {seconds / 60:,.0f} minutes and the limit is {CHECK_SECONDS // 60}; a smaller"
            f" {'--seq_len' if chosen.causal else '--map'}, a few times the stride or block, shows"
            " the same structure"
        )
    depth = {"n_layer": n_layer, "n_head": n_head}
    result = reachability(chosen.stack, T, **depth, causal=chosen.causal)
    if as_json:
        report = {
            "pattern": str(chosen.stack),
            "seq_len": T,
            "map": chosen.map,
            "n_head": n_head,
            "n_layer": n_layer,
            "complete": result.complete,
            "pairs": result.pairs,
            "missing": result.missing,
            "examples": [{"query": query, "key": key} for query, key in result.examples],
        }
        text = json.dumps(report, indent=2)
    elif result.complete:
        reached = "itself and every later one" if chosen.causal else "every position of the map"
        text = f"{chosen}\ncomplete: every position reaches {reached}"
    else:
        share = _percent(result.missing / result.pairs)
        examples = ", ".join(f"{key} to {query}" for query, key in result.examples)
        text = (
            f"{chosen}\nnot complete: {result.missing:,} of {result.pairs:,} pairs ({share}) are"
            f" not connected, the first of them from position {examples}"
        )
    return COMPLETE if result.complete else INCOMPLETE, text


def _seconds_to_check(chosen: Selection) -> float:
    """Estimate the time of ``reachability``, which joins one set of up to T bits for each pair."""
    T = chosen.seq_len
    if not chosen.causal:
        return _seconds_to_check_map(chosen)
    per_pair = _SECONDS_PER_PAIR + T / 16 * _SECONDS_PER_BYTE  # sets are half full on average
    total = 0.0
    for layer, numbers in chosen.layers.items():
        for pattern in set(layer.heads(chosen.n_head)):
            # A dense head takes a running union, not its pairs one by one.
            pairs = 0 if isinstance(pattern, Dense) else pattern.count_pairs(T, chosen.causal)
            total += len(numbers) * (T * _SECONDS_PER_QUERY + pairs * per_pair)
    return total


def _seconds_to_check_map(chosen: Selection) -> float:
    """The same without the triangle, where what a class reads is joined once for all of it."""
    T, at_once = chosen.seq_len, sources_at_once(chosen.seq_len)
    per_join = _SECONDS_PER_PAIR + at_once / 8 * _SECONDS_PER_BYTE
    total = 0.0
    for layer, numbers in chosen.layers.items():
        for part in {part for head in layer.heads(chosen.n_head) for part in head.parts}:
            joins = T * min(T, 2 * part.window - 1) if isinstance(part, Local) else T
            total += len(numbers) * (T * _SECONDS_PER_QUERY + (T + joins) * per_join)
    return total * -(-T // at_once)
