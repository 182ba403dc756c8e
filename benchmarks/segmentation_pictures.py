"""Pictures of what ``dual_segmentation.py`` found: masks, attention of a position, and costs."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image
from scenes import CLASSES, CONTEXT_CLASSES, FRAMED_CLASSES
from segmentation_training import (
    ARMS,
    Run,
    as_images,
    predict,
    scene_groups,
    scene_makers,
    weights_file,
)
from torch import Tensor

from sparse_tx.vision.fcn import STRIDE, SmallFCN

# One colour for each class, the background first; after the palette of Okabe and Ito (2008), which
# colour-blind readers can tell apart.
_CLASS_COLOURS = (
    *("#1c1f26", "#56b4e9", "#e69f00", "#f0e442"),
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7"),
)
_LINES = (
    *("#1c1f26", "#6a6f7a", "#a9adb5"),
    *("#0072b2", "#009e73", "#56b4e9", "#e69f00", "#d55e00"),
)
_MARKS = "osD^vPX*"
_SOFT = "#6a6f7a"
# Of all colours together: enough for smooth edges, and a third of the file's size.
_SHADES = 128


def trained(run: Run, folder: Path) -> SmallFCN:
    """The network of a run as training left it, for testing."""
    model = run.network()
    model.load_state_dict(torch.load(weights_file(folder, run), weights_only=True))
    return model.eval()


def draw_masks(runs: list[Run], folder: Path, path: Path, n_scenes: int = 4) -> None:
    """The first test scenes of a seed, their classes, and what every arm makes of them, as PNG.

    Args:
        runs: those of one seed.
        folder: where their weights are.
        path: where the picture goes.
        n_scenes: rows of the picture.
    """
    scenes, classes = (x[:n_scenes] for x in _first_tests(runs[0]))
    columns = {"scene": scenes, "classes": classes}
    columns |= {run.arm: predict(trained(run, folder), scenes) for run in runs}
    figure, axes = _grid(len(scenes), list(columns), edge=1.15, below=0.35)
    for column, images in enumerate(columns.values()):
        for row, image in enumerate(images):
            if column:
                colours = ListedColormap(_CLASS_COLOURS)
                axes[row, column].imshow(image, cmap=colours, vmin=0, vmax=len(CLASSES) - 1)
            else:
                axes[row, column].imshow(image, cmap="gray", vmin=0, vmax=255)
    figure.legend(
        handles=[
            Patch(color=colour, label=name)
            for colour, name in zip(_CLASS_COLOURS, CLASSES, strict=True)
        ],
        loc="outside lower center",
        ncols=len(CLASSES),
        fontsize=8,
        frameon=False,
    )
    _save(figure, path)


def draw_attention(runs: list[Run], folder: Path, path: Path) -> None:
    """Where a position on a digit whose class the frame decides gets its values from, as PNG.

    It is in the middle of such digits of the first test scene with a frame (of the first scene, if
    none has one). Attention in several steps is drawn as what all of them bring there together.
    """
    scenes, classes = _first_tests(runs[0])
    shown = [n for n, mask in enumerate(classes) if np.isin(mask, FRAMED_CLASSES).any()]
    scene, mask = (x[shown[0] if shown else 0] for x in (scenes, classes))
    y, x = clicked_position(mask)
    runs = [run for run in runs if ARMS[run.arm][0]]
    figure, axes = _grid(1, ["scene", *(run.arm for run in runs)], edge=1.7)
    for ax, run in zip(axes[0], [None, *runs], strict=True):
        ax.imshow(scene, cmap="gray", vmin=0, vmax=255)
        if run:
            weights = attention_of_position(trained(run, folder), as_images(scene[None]), y, x)
            ax.imshow(
                weights.repeat_interleave(STRIDE, 0).repeat_interleave(STRIDE, 1),
                cmap="inferno",
                alpha=0.75,
                vmin=0,
            )
        ax.plot(
            *((place + 0.5) * STRIDE - 0.5 for place in (x, y)),
            marker="+",
            color="#00e5ff",
            markersize=9,
            markeredgewidth=1.6,
        )
        ax.set(xlim=(-0.5, len(scene) - 0.5), ylim=(len(scene) - 0.5, -0.5))
    _save(figure, path)


@torch.no_grad()
def attention_of_position(model: SmallFCN, image: Tensor, y: int, x: int) -> Tensor:
    """What each position of the map counts for the one in row ``y`` and column ``x``: ``(h, w)``.

    Of attention in several steps it is the product of the steps' weights: where what the position
    reads last comes from in the steps before, what each position keeps of its own left aside.

    Args:
        model: in evaluation mode.
        image: ``(1, in_channels, H, W)``.
        y: row, on the map.
        x: column, on the map.
    """
    maps = model.position_branch.before(model.trunk(image))
    attention = model.position_branch.attention
    n_steps = len(attention.pattern.layers) if attention.pattern else 1
    weights = attention.weights_of(maps, y * maps.shape[3] + x, n_steps - 1)[0]
    for step in reversed(range(n_steps - 1)):
        read = [(q, weight) for q, weight in enumerate(weights.flatten().tolist()) if weight]
        weights = sum(weight * attention.weights_of(maps, q, step)[0] for q, weight in read)
    return weights


def clicked_position(mask: np.ndarray) -> tuple[int, int]:
    """Row and column, on the map, of the middle one of all pixels whose class the frame decides."""
    ys, xs = np.nonzero(np.isin(mask, CONTEXT_CLASSES))
    middle = len(ys) // 2
    return int(ys[middle]) // STRIDE, int(xs[middle]) // STRIDE


def draw_costs(result: dict, path: Path) -> None:
    """Seconds and peak bytes of the position attention against the positions of its map, as PNG."""
    figure = Figure(figsize=(10, 4.6), dpi=110, facecolor="white", layout="constrained")
    time, memory = figure.subplots(1, 2)
    names = list(dict.fromkeys(name for rows in result["sides"].values() for name in rows))
    for number, name in enumerate(names):
        rows = [
            (int(side) ** 2, found[name])
            for side, found in result["sides"].items()
            if name in found
        ]
        style = {"color": _LINES[number % len(_LINES)], "marker": _MARKS[number % len(_MARKS)]}
        style |= {"linestyle": "--" if name.startswith("dense") else "-"}
        style |= {"linewidth": 1.5, "markersize": 4.5, "label": name}
        time.plot([N for N, _ in rows], [row["median_s"] * 1e3 for _, row in rows], **style)
        memory.plot([N for N, _ in rows], [row["peak_bytes"] / 1e6 for _, row in rows], **style)
    sizes = [int(side) ** 2 for side in result["sides"]]
    _log_axes(time, sizes, "forward and backward, ms")
    _mark_crossover(time, result["crossovers"])
    _log_axes(memory, sizes, "peak memory beyond the start, MB")
    shape = result["shape"]
    figure.suptitle(
        f"Position attention alone: {shape['C']} channels, queries and keys of"
        f" {shape['C'] // shape['reduction']}, batch of {shape['B']}, one thread",
        size=10.5,
        x=0.01,
        ha="left",
    )
    handles, labels = time.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
    _save(figure, path)


def _mark_crossover(axes: Axes, crossovers: list[dict]) -> None:
    """Where the first sparse contender gets faster than all dense ones, if it does."""
    first = next(
        (one for one in crossovers if one["quantity"] == "median_s" and one["positions"]), None
    )
    if first is None:
        return
    axes.axvline(first["positions"], color=_SOFT, linewidth=0.8, linestyle=":")
    axes.annotate(
        f" {first['contender']}:\n faster than {first['against']}\n from {first['positions']:,} on",
        (first["positions"], 0.97),
        xycoords=("data", "axes fraction"),
        va="top",
        ha="left",
        size=7.5,
        color=_SOFT,
    )


def _log_axes(axes: Axes, sizes: list[int], title: str) -> None:
    axes.set_title(title, loc="left", size=9.5)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("positions", size=9)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda N, _: f"{N:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(10))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color="#e4e5e8", linewidth=0.7)
    axes.tick_params(labelsize=8.5, length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _first_tests(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The first group of test scenes of a run's seed, and their classes."""
    return next(scene_groups(run, scene_makers(run)[1]))


def _grid(
    n_rows: int, titles: list[str], edge: float, below: float = 0.0
) -> tuple[Figure, np.ndarray]:
    """Axes without ticks, ``edge`` inches each, with a title on every column, and room below."""
    size = (edge * len(titles), edge * n_rows + 0.4 + below)
    figure = Figure(figsize=size, dpi=110, facecolor="white", layout="constrained")
    axes = figure.subplots(n_rows, len(titles), squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title.replace(", ", ",\n"), size=8, color=_SOFT)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(_SHADES).save(path, format="png", optimize=True)
    print(f"drawn in {path}")
