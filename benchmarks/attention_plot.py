"""Speed-up over dense attention and peak memory against length, drawn from a benchmark's JSON.

    python benchmarks/attention_plot.py benchmarks/results/attention.json

What was not measured is not drawn.
"""

import json
import sys
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart.
COLOURS = {
    "cpu": "#0072b2",
    "triton": "#0072b2",
    "views": "#56b4e9",
    "flex": "#009e73",
    "flex-naive": "#e69f00",
    "sdpa-mask": "#cc79a7",
    "local-attention": "#d55e00",
    "reference": "#f0e442",
}
# Of all colours together: enough for smooth edges, and a third of the file's size.
_SHADES = 96
DENSE = "#1c1f26"
SOFT = "#6a6f7a"
STYLES = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", (0, (5, 1, 1, 1, 1, 1)))]


def draw(result: dict, path: Path) -> None:
    """Write the plot of a result of ``attention.py`` as PNG."""
    shape = result["shape"]
    lengths = {int(T): found["contenders"] for T, found in result["lengths"].items()}
    lengths[shape["T"]] = result["contenders"]
    rows = [row | {"T": T} for T in sorted(lengths) for row in lengths[T].values()]
    sparse = [row for row in rows if row["pattern"] != "dense"]
    patterns = list(dict.fromkeys(row["pattern"] for row in sparse))
    engines = list(dict.fromkeys(row["engine"] for row in sparse))

    figure = Figure(figsize=(10, 5.4), dpi=110, facecolor="white", layout="constrained")
    speed, memory = figure.subplots(1, 2)
    for number, pattern in enumerate(patterns):
        marker, line = STYLES[number % len(STYLES)]
        for engine in engines:
            own = [row for row in sparse if (row["pattern"], row["engine"]) == (pattern, engine)]
            style = {"color": COLOURS.get(engine, SOFT), "marker": marker, "linestyle": line}
            _line(speed, own, "speedup_over_dense", **style)
            _line(memory, own, "peak_bytes", **style)
        of_pattern = {row["T"]: row for row in sparse if row["pattern"] == pattern}
        ideal = list(of_pattern.values())
        _line(speed, ideal, "pair_ratio", color=SOFT, linestyle=(0, (4, 3)), linewidth=0.8)
        speed.annotate(
            f"pairs, {pattern}",
            (ideal[0]["T"], ideal[0]["pair_ratio"]),
            xytext=(0, 4),
            textcoords="offset points",
            size=7.5,
            color=SOFT,
        )
    speed.axhline(1, color=DENSE, linewidth=1.2)
    by_dense = {}
    for row in rows:
        if row["pattern"] == "dense":
            by_dense.setdefault(row["engine"], []).append(row)
    for own in by_dense.values():
        _line(memory, own, "peak_bytes", color=DENSE, linewidth=1.2, marker=".")

    _axes(speed, sorted(lengths), "times faster than dense", "{:g}")
    _axes(memory, sorted(lengths), "peak memory beyond inputs, MB", "{:,g}", unit=1e6)
    figure.suptitle(
        f"Causal attention, {shape['H']} heads of {shape['D']}, {shape['dtype']} on"
        f" {shape['device']}; forward and backward where there is one",
        size=10.5,
        x=0.01,
        ha="left",
    )
    handles = [
        Line2D([], [], color=COLOURS.get(name, SOFT), linewidth=3, label=name) for name in engines
    ]
    handles.append(Line2D([], [], color=DENSE, linewidth=1.2, label="dense"))
    for number, pattern in enumerate(patterns):
        marker, line = STYLES[number % len(STYLES)]
        style = {"marker": marker, "linestyle": line, "markersize": 4}
        handles.append(Line2D([], [], color=SOFT, label=pattern, **style))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 6),
        fontsize=8.5,
        frameon=False,
    )
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).quantize(_SHADES).save(path, format="png", optimize=True)
    print(f"drawn in {path}")


def _line(axes: Axes, rows: list[dict], key: str, **style) -> None:
    style = {"linewidth": 1.5, "markersize": 4.5} | style
    axes.plot([row["T"] for row in rows], [row[key] for row in rows], **style)


def _axes(axes: Axes, lengths: list[int], title: str, form: str, unit: float = 1) -> None:
    axes.set_title(title, loc="left", size=9.5)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("T, tokens", size=9)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda T, _: f"{T:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: form.format(y / unit)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#e4e5e8", linewidth=0.7)
    axes.tick_params(labelsize=8.5, length=0)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        draw(json.loads(Path(name).read_text()), Path(name).with_suffix(".png"))
