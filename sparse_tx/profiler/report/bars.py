"""The page's stacked bars: what bytes, FLOPs and time of a work are made of."""

from html import escape

from sparse_tx.profiler.records import Profile, Work
from sparse_tx.profiler.report import facts
from sparse_tx.profiler.report.palette import LIGHT
from sparse_tx.profiler.report.plots import Legend, Plot
from sparse_tx.profiler.report.sheets import PARTS, folded, rows_with_parts
from sparse_tx.profiler.report.words import count_text, one, plain_name, share_text

BAR_HEIGHT, BARS_MARGIN = 58, 46
"""Pixels of one stacked bar with its heading, and of what stands around all of them."""


def parts_plots(profile: Profile, work: Work) -> list[Plot]:
    """Stacked bars of bytes, FLOPs and time by part, a bar for each pattern."""
    plots = [_stacked(profile, work, kind) for kind in PARTS]
    return [plot for plot in plots if plot]


def _stacked(profile: Profile, work: Work, kind: str) -> Plot | None:
    get, text, title, explanation = PARTS[kind]
    rows = rows_with_parts(profile, work, kind)
    if not rows:
        return None
    wholes = folded([get(row) for row in rows])
    totals = [sum(parts.values()) for parts in wholes]
    knobs = facts.varying_knobs(profile)
    traces, legend = [], []
    for number, name in enumerate(wholes[0]):
        colour = f"@part-{number % len(LIGHT.parts)}"
        shares = [
            parts[name] / total if total else 0 for parts, total in zip(wholes, totals, strict=True)
        ]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": escape(plain_name(name)),
                "x": shares,
                "y": list(range(len(rows))),
                "width": 0.5,
                "marker": {"color": colour, "line": {"color": "@paper", "width": 1.5}},
                "text": [
                    f"<b>{escape(plain_name(name))}</b><br>{text(parts[name])}, {share_text(share)}"
                    for parts, share in zip(wholes, shares, strict=True)
                ],
                "textposition": "none",
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
        legend.append(Legend(plain_name(name), colour[1:]))
    headings = [
        {
            "x": 0,
            "y": number,
            "yshift": 22,
            "xanchor": "left",
            "xref": "x",
            "yref": "y",
            "showarrow": False,
            "align": "left",
            "text": f"{escape(facts.series_name(row.setting, knobs))} at"
            f" {count_text(row.setting.model.seq_len)}: <b>{text(total)}</b>",
        }
        for number, (row, total) in enumerate(zip(rows, totals, strict=True))
    ]
    return Plot(
        key=f"parts-{kind}-{work}",
        title=title,
        caption=explanation.format(work=one(work)) + " Every bar is 100 % of its own total.",
        description=f"Stacked bars: {title.lower()}. The table below the plot has the figures.",
        data=traces,
        layout={
            "barmode": "stack",
            "margin": {"l": 18, "r": 26},  # half of the first and of the last tick's text
            "annotations": headings,
            "xaxis": {"tickformat": ".0%", "range": [0, 1], "fixedrange": True},
            "yaxis": {
                "visible": False,
                "range": [len(rows) - 0.45, -0.75],
                "fixedrange": True,
            },
        },
        height=BAR_HEIGHT * len(rows) + BARS_MARGIN,
        legend=tuple(legend),
    )
