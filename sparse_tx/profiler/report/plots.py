"""The page's plots, as the values that Plotly's JavaScript takes.

Colours are names such as ``@series-0``, which the page replaces by those of its light or dark
theme; tick marks are chosen by the page from the levels given here, by the room that there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from sparse_tx.profiler.records import Profile, Row, Work
from sparse_tx.profiler.report import facts
from sparse_tx.profiler.report.palette import colour_name, mark_name
from sparse_tx.profiler.report.scale import Ticks, length_levels, quantity_levels
from sparse_tx.profiler.report.words import (
    bytes_text,
    count_text,
    difference_text,
    flops_text,
    one,
    seconds_text,
    share_text,
)

MEMORY_BAND, TIME_BAND = 0.05, 0.25
"""How near to the measurement a prediction should be; drawn as a band beside it."""


@dataclass(frozen=True)
class Legend:
    """One entry of a plot's own legend: a name and the colour that it stands for."""

    name: str
    colour: str


@dataclass(frozen=True)
class Plot:
    """One plot, its caption, and what the page needs to draw it.

    Attributes:
        key: identifies it within the page.
        title: what it shows.
        caption: what is to be seen, in a sentence.
        description: for readers who cannot see it.
        data: Plotly's traces.
        layout: Plotly's layout, without fonts, colours of the ground, and ticks.
        ticks: for each axis levels of tick marks, from coarse to fine.
        height: in pixels.
        legend: of the plot alone, where it does not share the page's.
    """

    key: str
    title: str
    caption: str
    description: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    ticks: dict[str, list[Ticks]] = field(default_factory=dict)
    height: int = 360
    legend: tuple[Legend, ...] = ()

    def drawn(self) -> dict[str, Any]:
        """What the page's script takes."""
        return {"data": self.data, "layout": self.layout, "ticks": self.ticks}


@dataclass(frozen=True)
class Quantity:
    """What a row costs in one respect.

    Attributes:
        kind: ``seconds``, ``bytes`` or ``flops``.
        title: what it is called above a plot.
        caption: what is to be seen in the plot.
    """

    kind: str
    title: str
    caption: str

    def predicted(self, row: Row) -> float | None:
        """From accounting; None where it does not say."""
        told = row.prediction
        values = {"seconds": told.seconds, "bytes": told.peak_bytes}
        return values[self.kind] if self.kind in values else facts.useful_flops(row)

    def measured(self, row: Row) -> float | None:
        """What was found; None without a measurement, after a failure, and for counts."""
        if self.kind == "seconds":
            return facts.measured_seconds(row)
        return facts.measured_bytes(row) if self.kind == "bytes" else None

    def text(self, value: float | None) -> str:
        """A value with its unit."""
        return {"seconds": seconds_text, "bytes": bytes_text, "flops": flops_text}[self.kind](value)


QUANTITIES = {
    "seconds": Quantity(
        "seconds", "Time", "Lower is faster. The steeper a line, the worse it is for long texts."
    ),
    "bytes": Quantity(
        "bytes", "Peak memory", "The most that was held at any moment, the model included."
    ),
    "flops": Quantity(
        "flops", "Useful FLOPs", "Arithmetic on the pairs that the pattern keeps: exact counts."
    ),
}


def cost_plots(profile: Profile, work: Work) -> list[Plot]:
    """Time, memory and FLOPs of one work against length; without those that have no value."""
    plots = [_against_length(profile, work, quantity) for quantity in QUANTITIES.values()]
    return [plot for plot in plots if plot.data]


def _against_length(profile: Profile, work: Work, quantity: Quantity) -> Plot:
    traces: list[dict] = []
    values: list[float] = []
    lengths: list[int] = []
    lines = facts.all_series(profile, work)
    # Marks lie above all lines, and crosses above all marks.
    for series in lines:
        traces += _predicted_lines(series, quantity, profile)
    for series in lines:
        traces += _measured_marks(series, quantity)
    for series in lines:
        traces += _failed_crosses(series, quantity)
    for trace in traces:
        values += trace["y"]
        lengths += trace["x"]
    return Plot(
        key=f"{quantity.kind}-{work}",
        title=f"{quantity.title} against length",
        caption=quantity.caption,
        description=(
            f"Line plot of {quantity.title.lower()} of {one(work)} against the length in"
            " tokens, a line for each pattern, both axes logarithmic. The table of all settings has"
            " the same figures."
        ),
        data=traces,
        layout={
            "xaxis": {"type": "log", "title": {"text": "length (tokens)"}},
            "yaxis": {"type": "log"},
        },
        ticks={"xaxis": length_levels(lengths), "yaxis": quantity_levels(quantity.kind, values)},
    )


def predicted_parts(
    series: facts.Series, quantity: Quantity, profile: Profile
) -> tuple[list[Row], list[Row]]:
    """The rows of a predicted line: up to the longest measured length, and from there on.

    Counts need no measurement, and where nothing at all was measured every line is a prediction:
    then all rows are in the first part.
    """
    rows = [row for row in series.rows if quantity.predicted(row) is not None]
    if quantity.kind == "flops" or not facts.anything_measured(profile):
        return rows, []
    known = [n for n, row in enumerate(rows) if quantity.measured(row) is not None]
    last = known[-1] if known else -1
    if last == len(rows) - 1:
        return rows, []
    return rows[: last + 1], rows[max(0, last) :]  # both have the last measured one


def _predicted_lines(series: facts.Series, quantity: Quantity, profile: Profile) -> list[dict]:
    """The predicted line, dotted beyond what was measured."""
    backed, beyond = predicted_parts(series, quantity, profile)
    return [
        {
            **_points(series, part, quantity, [quantity.predicted(row) for row in part]),
            "mode": "lines+markers",
            "line": {"color": _colour(series), "width": 2.25, "dash": dash},
            "marker": {"color": _colour(series), "size": 4},
        }
        for part, dash in ((backed, "solid"), (beyond, "dot"))
        if part
    ]


def spread(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """How far the shortest round lies below the median of measured rows, and the longest above."""
    pairs = [(facts.measured_seconds(row), row.measurement.seconds) for row in rows]
    below = [middle - min(rounds) for middle, rounds in pairs]
    return below, [max(rounds) - middle for middle, rounds in pairs]


def _measured_marks(series: facts.Series, quantity: Quantity) -> list[dict]:
    """A mark at every median, with bars from the shortest to the longest round."""
    rows = [row for row in series.rows if quantity.measured(row) is not None]
    if not rows:
        return []
    trace = {
        **_points(series, rows, quantity, [quantity.measured(row) for row in rows]),
        "mode": "markers",
        "marker": {
            "color": _colour(series),
            "symbol": mark_name(series.colour, series.variant),
            "size": 10,
            "line": {"color": "@paper" if not series.variant else _colour(series), "width": 1.5},
        },
    }
    if quantity.kind == "seconds":
        below, above = spread(rows)
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "color": _colour(series),
            "thickness": 1.5,
            "width": 4,
        }
    return [trace]


def _failed_crosses(series: facts.Series, quantity: Quantity) -> list[dict]:
    """A cross where a run failed, at the predicted cost, as there is no measured one."""
    rows = [
        row
        for row in series.rows
        if facts.failure(row) and quantity.kind != "flops" and quantity.predicted(row) is not None
    ]
    if not rows:
        return []
    return [
        {
            **_points(series, rows, quantity, [quantity.predicted(row) for row in rows]),
            "mode": "markers",
            "marker": {
                "color": _colour(series),
                "symbol": "x-thin",
                "size": 12,
                "line": {"color": _colour(series), "width": 3},
            },
        }
    ]


def _points(series: facts.Series, rows: list[Row], quantity: Quantity, values: list) -> dict:
    return {
        "type": "scatter",
        "name": escape(series.name),
        "meta": {"series": series.name},
        "x": [row.setting.model.seq_len for row in rows],
        "y": values,
        "text": [_hover(series, row, quantity) for row in rows],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _hover(series: facts.Series, row: Row, quantity: Quantity) -> str:
    """What appears beside a point: escaped, as Plotly reads it as HTML."""
    predicted, measured = quantity.predicted(row), quantity.measured(row)
    lines = [f"{count_text(row.setting.model.seq_len)} tokens"]
    name = "counted" if quantity.kind == "flops" else "predicted"
    if predicted is not None:
        lines.append(f"{name} {quantity.text(predicted)}")
    if measured is not None:
        spread = ""
        if quantity.kind == "seconds" and len(row.measurement.seconds) > 1:
            ends = min(row.measurement.seconds), max(row.measurement.seconds)
            spread = f" ({' to '.join(map(seconds_text, ends))})"
        lines.append(f"measured {quantity.text(measured)}{spread}")
        off = facts.difference(predicted, measured)
        if off is not None:
            lines.append(f"predicted {difference_text(off)} off")
    if quantity.kind != "flops":
        if facts.failure(row):
            lines.append(f"failed: {facts.failure(row)}")
        elif row.not_measured:
            lines.append(f"not measured: {row.not_measured}")
    return "<br>".join([f"<b>{escape(series.name)}</b>", *map(escape, lines)])


def _colour(series: facts.Series) -> str:
    return f"@{colour_name(series.colour)}"


def agreement_plots(profile: Profile) -> list[Plot]:
    """Measured against predicted, for memory and for time, over all works."""
    bands = (("bytes", MEMORY_BAND), ("seconds", TIME_BAND))
    plots = [_agreement(profile, QUANTITIES[kind], band) for kind, band in bands]
    return [plot for plot in plots if plot]


def _agreement(profile: Profile, quantity: Quantity, band: float) -> Plot | None:
    traces = []
    for series in facts.all_series(profile):
        rows = [
            row
            for row in series.rows
            if quantity.predicted(row) and quantity.measured(row)  # an axis of logarithms has no 0
        ]
        if rows:
            trace = _measured_marks(series, quantity)[0]
            trace |= _points(series, rows, quantity, [quantity.measured(row) for row in rows])
            trace["x"] = [quantity.predicted(row) for row in rows]
            trace.pop("error_y", None)
            traces.append(trace)
    if not traces:
        return None
    values = [value for trace in traces for value in (*trace["x"], *trace["y"])]
    low, high = min(values) / 1.6, max(values) * 1.6
    ends = [low, high]
    ground = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "x": ends}
    levels = quantity_levels(quantity.kind, values)
    name = quantity.title.lower()
    inside = sum(
        abs(facts.difference(predicted, measured)) <= band
        for trace in traces
        for predicted, measured in zip(trace["x"], trace["y"], strict=True)
    )
    total = sum(len(trace["x"]) for trace in traces)
    return Plot(
        key=f"agreement-{quantity.kind}",
        title=f"{quantity.title}: measured against predicted",
        caption=(
            f"On the line both agree; the band is {share_text(band)} to either side and holds"
            f" {inside} of {total}. Above it the work cost more than predicted."
        ),
        description=(
            f"Scatter plot of measured against predicted {name} with the line of equality."
            " The table of all settings has the same figures."
        ),
        data=[
            {**ground, "y": [end / (1 + band) for end in ends], "line": {"width": 0}},
            {
                **ground,
                "y": [end / (1 - band) for end in ends],
                "line": {"width": 0},
                "fill": "tonexty",
                "fillcolor": "@band",
            },
            {**ground, "y": ends, "line": {"color": "@soft", "width": 1}},
            *traces,
        ],
        layout={
            "xaxis": {"type": "log", "title": {"text": f"predicted {name}"}},
            "yaxis": {"type": "log", "title": {"text": f"measured {name}"}},
        },
        ticks={"xaxis": levels, "yaxis": levels},
    )
