"""Drawing maps with matplotlib; ``map_picture.save_map_png`` is the way in."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sparse_tx.masks.figure import DPI, INK, LARGE, MEDIUM, QUERY, SMALL, SOFT, UNREAD

READ, REACHED = "#2a6bc0", "#b3dcf7"
NAMES = ("not read", "read", "arrived by way of others", "the query")
COLOURS = (UNREAD, READ, REACHED, QUERY)
# Inches.
PANEL, SPACE, MARGIN, TOP, CAPTION = 2.6, 0.35, 0.35, 0.85, 0.3
PANELS_PER_ROW = 4
MOST_WITH_LINES = 48


def draw_maps(title: str, panels: list[tuple[str, np.ndarray]]) -> Figure:
    """Draw titled maps ``(H, W)`` of marks, 0 to 3 in the order of ``NAMES``, side by side."""
    H, W = panels[0][1].shape
    rows = -(-len(panels) // PANELS_PER_ROW)
    columns = -(-len(panels) // rows)
    # The longer side of a map is a panel's; what is very flat keeps a visible height.
    high, wide = PANEL * min(1, max(0.1, H / W)), PANEL * min(1, max(0.1, W / H))
    width = 2 * MARGIN + columns * (PANEL + SPACE) - SPACE
    height = TOP + rows * (CAPTION + high + SPACE) + MARGIN
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    figure.text(
        MARGIN / width, 1 - 0.2 / height, title, size=LARGE, weight="bold", color=INK, va="top"
    )
    figure.text(
        MARGIN / width,
        1 - 0.48 / height,
        f"a map of {H:,} x {W:,} positions, without the triangle",
        size=MEDIUM,
        color=SOFT,
        va="top",
    )
    for n, (name, marks) in enumerate(panels):
        row, column = divmod(n, columns)
        left = MARGIN + column * (PANEL + SPACE)
        bottom = height - TOP - row * (CAPTION + high + SPACE) - CAPTION - high
        axes = figure.add_axes([left / width, bottom / height, wide / width, high / height])
        axes.imshow(
            marks,
            cmap=ListedColormap(COLOURS),
            vmin=0,
            vmax=3,
            interpolation="nearest",
            aspect="auto",
        )
        if max(H, W) <= MOST_WITH_LINES:
            line = {"color": "white", "linewidth": min(1.2, 24 / max(H, W))}
            axes.vlines(np.arange(W + 1) - 0.5, -0.5, H - 0.5, **line)
            axes.hlines(np.arange(H + 1) - 0.5, -0.5, W - 0.5, **line)
        axes.set(xlim=(-0.5, W - 0.5), ylim=(H - 0.5, -0.5), xticks=[], yticks=[])
        axes.set_title(name, loc="left", size=SMALL, color=INK, pad=4)
        for spine in axes.spines.values():
            spine.set_visible(False)
    shown = sorted(set(np.unique(np.concatenate([marks.ravel() for _, marks in panels]))))
    figure.legend(
        handles=[Patch(color=COLOURS[mark], label=NAMES[mark]) for mark in reversed(shown)],
        loc="lower left",
        bbox_to_anchor=(MARGIN / width, 0.02),
        ncols=4,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        borderpad=0,
        handlelength=0.9,
        handleheight=0.9,
    )
    return figure
