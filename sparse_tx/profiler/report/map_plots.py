"""Plots of modules for maps against the number of positions: for the page, and as PNG."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from sparse_tx.accounting.map_crossovers import positions_of_convolution
from sparse_tx.accounting.maps import MapCost, MapShape
from sparse_tx.profiler.maps import CONVOLUTION, MapProfile, MapRow
from sparse_tx.profiler.report.figures import mark_axes
from sparse_tx.profiler.report.palette import (
    DENSE,
    LIGHT,
    colour_name,
    mark_name,
    matplotlib_mark,
)
from sparse_tx.profiler.report.plots import Plot
from sparse_tx.profiler.report.scale import Ticks, quantity_levels
from sparse_tx.profiler.report.words import bytes_text, count_text, macs_text

# Inches.
_PANEL_WIDTH, _PANEL_HEIGHT = 5.6, 4.2
_HEADING, _LEGEND_LINE = 0.6, 0.26
_DPI = 150
_SMALL, _MEDIUM, _LARGE = 8, 9.5, 13
_ENTRIES_PER_LINE = 4


@dataclass(frozen=True)
class MapQuantity:
    """What a module costs in one respect.

    Attributes:
        kind: ``macs`` or ``bytes``.
        title: what it is called above a plot.
        caption: what is to be seen in the plot.
        of: its value; 0 where the module has none.
        text: a value with its unit.
    """

    kind: str
    title: str
    caption: str
    of: Callable[[MapCost], int]
    text: Callable[[float | None], str]


QUANTITIES = (
    MapQuantity(
        "macs",
        "MACs",
        "Lower is cheaper. All pairs grow with the square of the positions, convolutions with the"
        " positions, gates for channels not at all.",
        lambda cost: cost.macs,
        macs_text,
    ),
    MapQuantity(
        "bytes",
        "Attention map",
        "Bytes of the weights of all pairs that meet, in float32, if they are held whole.",
        lambda cost: cost.attention_map_bytes,
        bytes_text,
    ),
)


def colour_of(profile: MapProfile, module: str) -> int:
    """The number of a module's colour; the yardstick has that of dense attention elsewhere."""
    return DENSE if module == CONVOLUTION else profile.modules.index(module) - 1


def channels_of(profile: MapProfile) -> list[int]:
    """The numbers of channels of the maps, each once."""
    return list(dict.fromkeys(shape.channels for shape in profile.shapes))


def map_plots(profile: MapProfile, channels: int) -> list[Plot]:
    """MACs and attention maps against positions, for one number of channels."""
    return [_plot(profile, channels, quantity) for quantity in QUANTITIES]


def _plot(profile: MapProfile, channels: int, quantity: MapQuantity) -> Plot:
    traces = []
    for module in profile.modules:
        name = {"type": "scatter", "name": escape(module), "meta": {"series": module}}
        colour = f"@{colour_name(colour_of(profile, module))}"
        mark = mark_name(colour_of(profile, module), 0)
        for rows, mode, look in (
            (_curve(profile, channels, module, quantity), "lines+markers", {"size": 4}),
            (
                _asked(profile, channels, module, quantity),
                "markers",
                {"size": 10, "symbol": mark, "line": {"color": "@paper", "width": 1.5}},
            ),
        ):
            if rows:
                traces.append(
                    {
                        **name,
                        "x": [row.shape.positions for row in rows],
                        "y": [quantity.of(row.cost) for row in rows],
                        "text": [_hover(row, quantity) for row in rows],
                        "hovertemplate": "%{text}<extra></extra>",
                        "mode": mode,
                        "line": {"color": colour, "width": 2.25},
                        "marker": {"color": colour, **look},
                    }
                )
    values = [value for trace in traces for value in trace["y"]]
    crossing = positions_of_convolution(channels)
    if quantity.kind == "macs":
        traces.append(_crossing(crossing, min(values), max(values)))
    return Plot(
        key=f"{quantity.kind}-{channels}",
        title=f"{quantity.title} against positions",
        caption=quantity.caption,
        description=(
            f"Line plot of {quantity.title} against the positions of square maps with"
            f" {count_text(channels)} channels, a line for each module, both axes logarithmic. The"
            " table has the figures of the maps that were asked about."
        ),
        data=traces,
        layout={
            "xaxis": {"type": "log", "title": {"text": "positions (square maps)"}},
            "yaxis": {"type": "log"},
        },
        ticks={"xaxis": side_levels(profile), "yaxis": quantity_levels(quantity.kind, values)},
        height=460,
    )


def _crossing(positions: int, low: float, high: float) -> dict:
    """An upright line where all pairs begin to cost more than the convolution."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [positions, positions],
        "y": [low, high],
        "text": [f"N = 9C = {count_text(positions)}: a non-local block's pairs cost as a 3x3"] * 2,
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": "@soft", "width": 1, "dash": "dash"},
    }


def _curve(profile: MapProfile, channels: int, module: str, quantity: MapQuantity) -> list[MapRow]:
    return _kept(profile.curves, channels, module, quantity)


def _asked(profile: MapProfile, channels: int, module: str, quantity: MapQuantity) -> list[MapRow]:
    return _kept(profile.rows, channels, module, quantity)


def _kept(rows, channels: int, module: str, quantity: MapQuantity) -> list[MapRow]:
    """The rows of a module that have a value, which an axis of logarithms can show."""
    return [
        row
        for row in rows
        if (row.shape.channels, row.module) == (channels, module) and quantity.of(row.cost)
    ]


def side_levels(profile: MapProfile) -> list[Ticks]:
    """One level of ticks: at the squares, by their sides."""
    squares = sorted({row.shape.positions: row.shape for row in profile.curves}.items())
    return [[(float(n), _sides(shape)) for n, shape in squares]]


def _sides(shape: MapShape) -> str:
    return "x".join(map(str, shape.sizes))


def _hover(row: MapRow, quantity: MapQuantity) -> str:
    """What appears beside a point: escaped, as Plotly reads it as HTML."""
    lines = [str(row.shape), quantity.text(quantity.of(row.cost))]
    return "<br>".join([f"<b>{escape(row.module)}</b>", *map(escape, lines)])


def map_figure(profile: MapProfile) -> bytes:
    """The same plots as PNG, a row for each number of channels."""
    from matplotlib.figure import Figure  # takes a second to import

    channels = channels_of(profile)
    legend_height = _LEGEND_LINE * (-(-len(profile.modules) // _ENTRIES_PER_LINE))
    width = len(QUANTITIES) * _PANEL_WIDTH
    height = _HEADING + len(channels) * _PANEL_HEIGHT + legend_height
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    figure.text(
        0.012,
        1 - 0.16 / height,
        "What attention costs on square maps; large marks: the maps that were asked about",
        size=_LARGE,
        weight="bold",
        color=LIGHT.ink,
        va="top",
    )
    grid = figure.add_gridspec(
        len(channels),
        len(QUANTITIES),
        left=0.08,
        right=0.985,
        top=1 - (_HEADING + 0.1) / height,
        bottom=(legend_height + 0.55) / height,
        wspace=0.2,
        hspace=0.35,
    )
    for number, own in enumerate(channels):
        for column, quantity in enumerate(QUANTITIES):
            _draw(figure.add_subplot(grid[number, column]), profile, own, quantity)
    _draw_legend(figure, profile)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _draw(axes, profile: MapProfile, channels: int, quantity: MapQuantity) -> None:
    axes.set(xscale="log", yscale="log")
    values: list[int] = []
    for module in profile.modules:
        number = colour_of(profile, module)
        colour, mark = LIGHT.of_pattern(number), matplotlib_mark(number)
        for rows, look in (
            (_curve(profile, channels, module, quantity), {"lw": 1.6, "marker": ".", "ms": 3}),
            (
                _asked(profile, channels, module, quantity),
                {"ls": "", "marker": mark, "ms": 7, "mec": "white", "mew": 0.8, "zorder": 4},
            ),
        ):
            found = [quantity.of(row.cost) for row in rows]
            axes.plot([row.shape.positions for row in rows], found, color=colour, **look)
            values += found
    crossing = positions_of_convolution(channels)
    if quantity.kind == "macs":
        axes.axvline(crossing, color=LIGHT.soft, lw=0.9, ls="--", zorder=0)
        axes.annotate(
            f"N = 9C = {count_text(crossing)}",
            (crossing, axes.get_ylim()[0]),
            xytext=(4, 4),
            textcoords="offset points",
            size=_SMALL,
            color=LIGHT.soft,
        )
    title = f"{quantity.title}, {count_text(channels)} channels"
    axes.set_title(title, loc="left", size=_MEDIUM, color=LIGHT.ink)
    axes.set_xlabel("positions (square maps)", size=_SMALL, color=LIGHT.soft)
    mark_axes(axes, side_levels(profile), quantity_levels(quantity.kind, values))


def _draw_legend(figure, profile: MapProfile) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=LIGHT.of_pattern(colour_of(profile, module)),
            marker=matplotlib_mark(colour_of(profile, module)),
            markeredgecolor="white",
            label=module,
        )
        for module in profile.modules
    ]
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.05, 0.005),
        ncols=_ENTRIES_PER_LINE,
        frameon=False,
        fontsize=_SMALL,
        labelcolor=LIGHT.ink,
    )
