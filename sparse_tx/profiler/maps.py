"""What modules for feature maps cost beside one another, by exact counts.

The yardstick is a 3x3 convolution that keeps the channels. Each module is counted on the maps that
are asked about, and on square maps of the same channels, from small to large.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sparse_tx.accounting.heads import require_count
from sparse_tx.accounting.maps import (
    MapCost,
    MapShape,
    channel_attention,
    channel_gate,
    convolution,
    non_local,
    position_attention,
    spatial_gate,
    squeeze_excite,
)
from sparse_tx.errors import UserError

CONVOLUTION = "3x3 convolution"
NON_LOCAL = "non-local"
SPATIAL_GATE = "CBAM spatial gate"
PATTERNS = "dense;rows:W,columns:W;crisscross:W"
"""Of position attention, if none are asked for."""

REDUCTION = 16
"""Of the gates for channels, as their papers have it."""

# Of queries and keys of position attention, as the released code has it.
POSITION_REDUCTION = 8

_MAP = re.compile(r"([0-9]{1,9})[xX]([0-9]{1,9})[xX]([0-9]{1,9})")
_WIDTH = re.compile(r"(?<=:)\s*W\b")
# Of a map; more are no feature map, and with some patterns take minutes to count.
MOST_POSITIONS = 1 << 22
MOST_CHANNELS = 1 << 20
# Squares that curves go through, at least; a pattern is counted on each.
_SIDES = tuple(2**n for n in range(2, 9))


@dataclass(frozen=True, kw_only=True)
class MapModule:
    """What is compared: its name, and its cost on a map."""

    name: str
    cost: Callable[[MapShape], MapCost]


@dataclass(frozen=True, kw_only=True)
class MapRow:
    """One module on one map."""

    shape: MapShape
    module: str
    cost: MapCost


@dataclass(frozen=True, kw_only=True)
class MapProfile:
    """Everything that a report of maps shows.

    Attributes:
        shapes: the maps that were asked about.
        modules: names of what is compared, the yardstick first.
        rows: every module on every map, map after map.
        curves: every module on square maps, of each number of channels that the maps have.
        provenance: of the run.
    """

    shapes: tuple[MapShape, ...]
    modules: tuple[str, ...]
    rows: tuple[MapRow, ...]
    curves: tuple[MapRow, ...]
    provenance: dict

    @property
    def title(self) -> str:
        """What the report is about."""
        return "Attention for feature maps of " + ", ".join(map(str, self.shapes))

    def cost(self, shape: MapShape, module: str) -> MapCost:
        """What a module costs on one of the maps."""
        return next(row.cost for row in self.rows if (row.shape, row.module) == (shape, module))


def profile_maps(
    shapes: tuple[MapShape, ...],
    patterns: tuple[str, ...],
    *,
    reduction: int = REDUCTION,
    provenance: dict | None = None,
) -> MapProfile:
    """Count every module on every map.

    Args:
        shapes: of the maps, each with two axes.
        patterns: of position attention, in notation; the word ``W`` stands for a map's width.
        reduction: of the gates for channels.
        provenance: of the run.

    Raises:
        UserError: a reduction does not divide the channels, or a pattern cannot be read or is for
            maps of another width.
    """
    require_count("reduction", reduction, "times")
    for shape in shapes:
        _check_channels(shape, reduction)
    modules = modules_for_maps(patterns, reduction)
    return MapProfile(
        shapes=shapes,
        modules=tuple(module.name for module in modules),
        rows=tuple(_row(shape, module) for shape in shapes for module in modules),
        curves=tuple(
            row
            for channels in dict.fromkeys(shape.channels for shape in shapes)
            for module in modules
            for row in _curve(module, _squares(shapes, channels))
        ),
        provenance=provenance or {},
    )


def modules_for_maps(patterns: tuple[str, ...], reduction: int = REDUCTION) -> list[MapModule]:
    """What is compared, the yardstick first; position attention once for every pattern."""
    return [
        MapModule(name=CONVOLUTION, cost=convolution),
        MapModule(name=NON_LOCAL, cost=non_local),
        MapModule(name="non-local, subsampled", cost=lambda s: non_local(s, subsample="before")),
        *(
            MapModule(
                name=f"position attention, {label}",
                cost=lambda s, label=label: position_attention(
                    s, POSITION_REDUCTION, pattern=at_width(label, s.width)
                ),
            )
            for label in patterns
        ),
        MapModule(name="channel attention", cost=channel_attention),
        MapModule(name="SE", cost=lambda s: squeeze_excite(s, reduction)),
        MapModule(name="CBAM channel gate", cost=lambda s: channel_gate(s, reduction)),
        MapModule(name=SPATIAL_GATE, cost=spatial_gate),
    ]


def parse_maps(text: str) -> tuple[MapShape, ...]:
    """Read maps such as ``"97x97x512,48x64x256"``: height, width and channels.

    Returns:
        The maps in the order that they are written in, each once.

    Raises:
        UserError: there is none, or one is no map or too large.
    """
    found: dict[MapShape, None] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        match = _MAP.fullmatch(item)
        if match is None:
            raise UserError(
                f"'{item}' in maps '{text}' is no map; write height x width x channels, such as"
                " 97x97x512"
            )
        height, width, channels = map(int, match.groups())
        if not (height and width and channels):
            raise UserError(
                f"the map '{item}' has a size of 0; height, width and channels are 1 or more"
            )
        if height * width > MOST_POSITIONS or channels > MOST_CHANNELS:
            raise UserError(
                f"the map '{item}' is larger than {MOST_POSITIONS:,} positions or"
                f" {MOST_CHANNELS:,} channels; give a smaller one"
            )
        found[MapShape((height, width), channels)] = None
    if not found:
        raise UserError(
            f"the maps are {text!r}; write height x width x channels, such as 97x97x512"
        )
    return tuple(found)


def parse_map_patterns(text: str) -> tuple[str, ...]:
    """Read patterns between ``;``, whose sizes may be the word ``W``; each once.

    Raises:
        UserError: there is none.
    """
    labels = dict.fromkeys("".join(label.split()) for label in text.split(";"))
    labels.pop("", None)
    if not labels:
        raise UserError(f"the patterns are {text!r}; write some between ';', such as '{PATTERNS}'")
    return tuple(labels)


def at_width(label: str, width: int) -> str:
    """The notation of a pattern on maps of a width, which the word ``W`` stands for."""
    return _WIDTH.sub(str(width), label)


def _row(shape: MapShape, module: MapModule) -> MapRow:
    return MapRow(shape=shape, module=module.name, cost=module.cost(shape))


def _check_channels(shape: MapShape, reduction: int) -> None:
    for divisor, who in ((reduction, "SE and CBAM"), (POSITION_REDUCTION, "position attention")):
        if shape.channels % divisor:
            raise UserError(
                f"the map {shape} has {shape.channels} channels, which {who} would divide by"
                f" {divisor}; give a multiple of {divisor}"
                + (", or another --reduction" if divisor == reduction else "")
            )


def _squares(shapes: tuple[MapShape, ...], channels: int) -> list[MapShape]:
    """Square maps of so many channels, up to the first that is no smaller than any map."""
    most = max(shape.positions for shape in shapes)
    sides = list(_SIDES)
    while sides[-1] ** 2 < most:
        sides.append(2 * sides[-1])
    return [MapShape((side, side), channels) for side in sides]


def _curve(module: MapModule, squares: list[MapShape]) -> Iterator[MapRow]:
    """A module on those squares that it can be counted on."""
    for square in squares:
        try:
            yield _row(square, module)
        except UserError:  # a pattern with a size of its own fits few maps
            continue
