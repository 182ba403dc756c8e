"""Pictures of a profile as PNG: the costs against length, and what each pattern reads."""

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from sparse_tx.masks import length_that_shows, save_png
from sparse_tx.masks.picture import SHORTEST_SHOWN
from sparse_tx.profiler.records import Profile, Row, Work
from sparse_tx.profiler.report import facts
from sparse_tx.profiler.report.palette import LIGHT, matplotlib_mark
from sparse_tx.profiler.report.plots import QUANTITIES, predicted_parts, spread
from sparse_tx.profiler.report.scale import Ticks, chosen_ticks, length_levels, quantity_levels
from sparse_tx.profiler.report.words import WORK_NAMES, what_it_reads

# Inches.
_PANEL_WIDTH, _PANEL_HEIGHT = 4.6, 3.5
_HEADING, _LEGEND_LINE = 0.75, 0.26
_DPI = 150
_SMALL, _MEDIUM, _LARGE = 8, 9.5, 13
_MOST_TICKS = 7
_ENTRIES_PER_LINE = 3


def cost_figure(profile: Profile) -> bytes:
    """Time, memory and FLOPs against length as PNG, a row of panels for each work.

    Measured values are marks with bars from the shortest to the longest round, predicted ones
    lines, dotted beyond the last measured length; a cross is a run that failed.
    """
    from matplotlib.figure import Figure  # takes a second to import

    works = facts.works(profile)
    lines = facts.all_series(profile)
    legend_height = _LEGEND_LINE * (-(-len(lines) // _ENTRIES_PER_LINE) + 1)
    width = len(QUANTITIES) * _PANEL_WIDTH
    height = _HEADING + max(1, len(works)) * _PANEL_HEIGHT + legend_height
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    title = "\n".join(wrap(profile.title, 110)[:2])
    figure.text(
        0.012, 1 - 0.18 / height, title, size=_LARGE, weight="bold", color=LIGHT.ink, va="top"
    )
    grid = figure.add_gridspec(
        max(1, len(works)),
        len(QUANTITIES),
        left=0.06,
        right=0.98,
        top=1 - (_HEADING + 0.1) / height,
        bottom=(legend_height + 0.6) / height,
        wspace=0.24,
        hspace=0.45,
    )
    for number, work in enumerate(works):
        for column, kind in enumerate(QUANTITIES):
            _draw_costs(figure.add_subplot(grid[number, column]), profile, work, kind)
    _draw_legend(figure, lines)
    text = io.BytesIO()
    figure.savefig(text, format="png")
    return text.getvalue()


def _draw_costs(axes, profile: Profile, work: Work, kind: str) -> None:
    quantity = QUANTITIES[kind]
    axes.set(xscale="log", yscale="log")
    values: list[float] = []
    lengths: list[int] = []
    for series in facts.all_series(profile, work):
        look = {"color": LIGHT.of_pattern(series.colour), "alpha": 0.6 if series.variant else 1}
        backed, beyond = predicted_parts(series, quantity, profile)
        failed = [row for row in [*backed, *beyond] if facts.failure(row) and kind != "flops"]
        found = [row for row in series.rows if quantity.measured(row) is not None]
        for rows, style in ((backed, "-"), (beyond, ":")):
            told = [quantity.predicted(row) for row in rows]
            axes.plot(_lengths(rows), told, style, lw=1.6, marker=".", ms=3, **look)
            values += told
        middles = [quantity.measured(row) for row in found]
        axes.errorbar(
            _lengths(found),
            middles,
            yerr=spread(found) if kind == "seconds" and found else None,
            fmt=matplotlib_mark(series.colour),
            ms=6,
            mec="white",
            mew=0.8,
            elinewidth=1.2,
            **look,
        )
        crosses = [quantity.predicted(row) for row in failed]
        axes.plot(_lengths(failed), crosses, "x", ms=8, mew=2.2, zorder=4, **look)
        lengths += _lengths(series.rows)
        values += middles
    title = f"{quantity.title}, {WORK_NAMES[work]}"
    axes.set_title(title, loc="left", size=_MEDIUM, color=LIGHT.ink)
    axes.set_xlabel("length (tokens)", size=_SMALL, color=LIGHT.soft)
    mark_axes(axes, length_levels(lengths), quantity_levels(kind, values))


def _lengths(rows: Sequence[Row]) -> list[int]:
    return [row.setting.model.seq_len for row in rows]


def mark_axes(axes, x_levels: list[Ticks], y_levels: list[Ticks]) -> None:
    """Give axes of logarithms their ticks and a grid."""
    from matplotlib.ticker import NullLocator

    for axis, levels, limits in (
        (axes.xaxis, x_levels, axes.get_xlim()),
        (axes.yaxis, y_levels, axes.get_ylim()),
    ):
        ticks = chosen_ticks(levels, *limits, most=_MOST_TICKS)
        axis.set_minor_locator(NullLocator())
        axis.set_ticks([value for value, _ in ticks], [text for _, text in ticks])
    axes.grid(color=LIGHT.grid, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=_SMALL, labelcolor=LIGHT.soft)
    for side in axes.spines.values():
        side.set_visible(False)


def _draw_legend(figure, lines: list[facts.Series]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=LIGHT.of_pattern(series.colour),
            alpha=0.6 if series.variant else 1,
            marker=matplotlib_mark(series.colour),
            markeredgecolor="white",
            label=series.name,
        )
        for series in lines
    ]
    told = {"color": LIGHT.soft, "marker": ""}
    handles += [
        Line2D([], [], **{**told, "marker": "o", "linestyle": ""}, label="measured"),
        Line2D([], [], **told, label="predicted"),
        Line2D([], [], **told, linestyle=":", label="predicted, beyond what was measured"),
        Line2D([], [], **{**told, "marker": "x", "linestyle": ""}, label="failed"),
    ]
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.05, 0.005),
        ncols=_ENTRIES_PER_LINE + 1,
        frameon=False,
        fontsize=_SMALL,
        labelcolor=LIGHT.ink,
    )


@dataclass(frozen=True)
class PatternPicture:
    """What one pattern reads, drawn and said.

    Attributes:
        label: the pattern as the user wrote it.
        notation: the pattern with its sizes, where they differ from the label's.
        reads: which positions a query reads, in a sentence.
        length: positions that are drawn.
        png: the picture.
    """

    label: str
    notation: str
    reads: str
    length: int
    png: bytes


def pattern_pictures(profile: Profile) -> list[PatternPicture]:
    """A picture of each of the profile's patterns, with its sizes at the longest length."""
    longest = {}
    for row in sorted(profile.rows, key=lambda row: row.setting.model.seq_len):
        longest[row.setting.label] = row.setting.model
    pictures = []
    for label in facts.labels(profile):
        model = longest[label]
        shown = min(length_that_shows(model.stack), max(SHORTEST_SHOWN, model.seq_len))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pattern.png"
            save_png(model.stack, path, T=shown, n_head=model.n_head, n_layer=model.n_layer)
            png = path.read_bytes()
        pictures.append(
            PatternPicture(
                label=label,
                notation=model.pattern if model.pattern != label else "",
                reads=what_it_reads(model.stack, model.n_head),
                length=shown,
                png=png,
            )
        )
    return pictures
