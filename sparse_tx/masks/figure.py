"""Drawing connectivity matrices with matplotlib; ``picture.save_png`` is the way in."""

from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sparse_tx.masks.cells import cell_shares, counted, numbered, row_shares, sets_of_layer
from sparse_tx.patterns import Dense, Layer, Pattern, Stack

MAX_CELLS = 256
# Fewer are drawn on a plane of this many, which leaves the legend its place.
FEWEST_POSITIONS = 16
# Up to here cells are separated by white lines, as in the paper's figure.
MAX_CELLS_WITH_LINES = 72
MAX_LEGEND = 6
PANELS_PER_ROW = 4

QUERY = "#0b1d4a"
SETS = LinearSegmentedColormap.from_list("sets", ["#2a6bc0", "#62aee8", "#b3dcf7"])
UNREAD = "#ececee"
INK, SOFT = "#1c1f26", "#6a6f7a"
# A cell in which a thousandth of the pairs is read should still be seen.
FAINTEST = 0.25

# Inches.
MATRIX, STRIP, SPACE = 3.1, 0.13, 0.7
HEADER, CAPTION, FOOTER = 0.52, 0.34, 0.5
LEFT, RIGHT = 0.72, 0.3

DPI = 200
SMALL, MEDIUM, LARGE = 7.5, 9, 12


def draw_stack(stack: Stack, layers: dict[Layer, list[int]], T: int, n_head: int) -> Figure:
    """Draw a panel for each of ``layers``, which holds the layer numbers that use it."""
    columns = min(PANELS_PER_ROW, len(layers))
    rows = -(-len(layers) // columns)
    n_layer = sum(map(len, layers.values()))
    panel_height = HEADER + MATRIX + CAPTION + STRIP + FOOTER
    width = LEFT + columns * (MATRIX + SPACE) - SPACE + RIGHT
    text_width = width - LEFT - RIGHT
    title = wrap(str(stack), width=int(text_width * 8.5), break_on_hyphens=False)
    totals = _totals(layers, T, n_head)
    title_height = 0.3 + 0.22 * len(title) + 0.17 * len(totals)
    height = title_height + rows * panel_height

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    x, y = LEFT / width, 1 - 0.2 / height
    kwargs = {"va": "top", "linespacing": 1.25}
    figure.text(x, y, "\n".join(title), size=LARGE, weight="bold", color=INK, **kwargs)
    y -= (0.22 * len(title) + 0.02) / height
    figure.text(x, y, "\n".join(totals), size=MEDIUM, color=SOFT, **kwargs)

    for number, (layer, numbers) in enumerate(layers.items()):
        name = numbered("layer", numbers) if n_layer > 1 else "one layer"
        row, column = divmod(number, columns)
        left = LEFT + column * (MATRIX + SPACE)
        bottom = height - title_height - row * panel_height - HEADER - MATRIX
        strip = bottom - CAPTION - STRIP
        box = np.array([width, height, width, height])
        matrix_axes = figure.add_axes(np.array([left, bottom, MATRIX, MATRIX]) / box)
        strip_axes = figure.add_axes(np.array([left, strip, MATRIX, STRIP]) / box)
        _draw_layer(matrix_axes, strip_axes, layer, name, T, n_head)
        if column == 0:
            matrix_axes.set_ylabel("query position", size=SMALL, color=SOFT)
    return figure


def _totals(layers: dict[Layer, list[int]], T: int, n_head: int) -> list[str]:
    n_layer = sum(map(len, layers.values()))
    pairs = sum(
        head.count_pairs(T) * len(numbers)
        for layer, numbers in layers.items()
        for head in layer.heads(n_head)
    )
    dense = Dense().count_pairs(T) * n_head * n_layer
    return [
        f"{counted(T, 'position')}, {counted(n_head, 'head')}, {counted(n_layer, 'layer')}",
        f"{pairs:,} of dense attention's {dense:,} pairs ({100 * pairs / dense:.3g} %)",
    ]


def _draw_layer(
    matrix_axes: Axes, strip_axes: Axes, layer: Layer, name: str, T: int, n_head: int
) -> None:
    cell = -(-T // MAX_CELLS)
    sets = sets_of_layer(layer, n_head)
    shade = [0.5] if len(sets) == 1 else np.linspace(0, min(1, 0.25 * len(sets) + 0.25), len(sets))
    colours = dict(zip(sets, map(to_rgb, SETS(shade)[:, :3]), strict=True))

    query = int(0.8 * (T - 1))
    edge = max(-(-T // cell) * cell, FEWEST_POSITIONS)
    _show(matrix_axes, _matrix_image(colours, T, cell), T, cell, shown=(edge, edge))
    _show(strip_axes, _strip_image(colours, T, cell, query), T, cell, shown=(1, edge))
    matrix_axes.set_xticks([])
    strip_axes.set_yticks([])
    strip_axes.set_xlabel("key position", size=SMALL, color=SOFT)

    label = {"size": SMALL, "color": SOFT}
    matrix_axes.text(
        query + 1 + edge / 60,
        query + 0.5,
        f"◂ query {query:,}",
        va="center",
        clip_on=False,
        **label,
    )
    read = np.zeros(T, dtype=bool)
    for head in layer.heads(n_head):
        for keys in head.read_set(query).ranges():
            read[keys.start : keys.stop : keys.step] = True
    caption = f"query {query:,} reads {counted(int(read.sum()), 'key')}"
    strip_axes.set_title(caption, loc="left", pad=3, **label)

    heads = [head.count_pairs(T) for head in layer.heads(n_head)]
    share = sum(heads) / n_head / Dense().count_pairs(T)
    pairs = (
        f"{counted(heads[0], 'pair')} a head" if len(set(heads)) == 1 else f"{sum(heads):,} pairs"
    )
    heading = {"x": 0, "transform": matrix_axes.transAxes, "va": "bottom", "ha": "left"}
    matrix_axes.text(s=name, y=1.085, size=MEDIUM, weight="bold", color=INK, **heading)
    matrix_axes.text(
        s=f"{pairs}, {100 * share:.3g} % of dense",
        y=1.025,
        size=SMALL,
        color=SOFT,
        **heading,
    )
    _draw_legend(matrix_axes, sets, colours, cell, n_head)


def _draw_legend(axes: Axes, sets, colours, cell: int, n_head: int) -> None:
    """Explain the colours in the free upper triangle."""
    entries = [Patch(color=QUERY, label="the query itself")] if cell == 1 else []
    for pattern, heads in list(sets.items())[:MAX_LEGEND]:
        of_heads = "" if len(heads) == n_head else f" ({numbered('head', heads)})"
        entries.append(Patch(color=colours[pattern], label=f"{pattern}{of_heads}"))
    if len(sets) > MAX_LEGEND:
        entries.append(Patch(color="white", label=f"and {len(sets) - MAX_LEGEND} more"))
    entries.append(Patch(color=UNREAD, label="not read"))
    if cell > 1:
        scale = f"cells of {cell:,} x {cell:,} pairs,\ndarker: more of them read"
        entries.append(Patch(color="white", label=scale))
    axes.legend(
        handles=entries,
        loc="upper right",
        fontsize=SMALL,
        labelcolor=INK,
        frameon=False,
        borderaxespad=0,
        borderpad=0,
        handlelength=0.9,
        handleheight=0.9,
        handletextpad=0.6,
        labelspacing=0.45,
    )


def _show(axes: Axes, image: np.ndarray, T: int, cell: int, shown: tuple[int, int]) -> None:
    """Show an image of cells with positions along its edges, on ``shown`` = (height, width)."""
    rows, columns = image.shape[:2]
    height = rows * cell if rows > 1 else 1
    axes.imshow(
        image, extent=(0, columns * cell, height, 0), interpolation="nearest", aspect="auto"
    )
    if columns <= MAX_CELLS_WITH_LINES:
        line = {"color": "white", "linewidth": min(1.2, 24 / columns)}
        axes.vlines(np.arange(columns + 1), 0, height, **line)
        axes.hlines(np.arange(height + 1), 0, columns, **line)
    for axis in (axes.xaxis, axes.yaxis):
        ticks = [n for n in MaxNLocator(5, integer=True, steps=[1, 2, 4, 8, 10]).tick_values(0, T)]
        ticks = [int(n) for n in ticks if 0 <= n < T]
        axis.set_ticks([n + 0.5 for n in ticks] if cell == 1 else ticks, [f"{n:,}" for n in ticks])
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=SOFT, pad=3)
    axes.set(xlim=(0, shown[1]), ylim=(shown[0], 0))
    for spine in axes.spines.values():
        spine.set_visible(False)


def _matrix_image(colours: dict[Pattern, tuple], T: int, cell: int) -> np.ndarray:
    """Paint the sets over light grey: ``(n, n, 3)`` RGB, where the first set lies on top."""
    n = -(-T // cell)
    image = np.ones((n, n, 3))
    image[np.tril_indices(n)] = to_rgb(UNREAD)
    for pattern, colour in reversed(colours.items()):
        _paint(image, cell_shares(pattern, T, cell), colour)
    if cell == 1:
        own = [i for i in range(n) if any(pattern.allows(i, i) for pattern in colours)]
        image[own, own] = to_rgb(QUERY)
    return image


def _strip_image(colours: dict[Pattern, tuple], T: int, cell: int, query: int) -> np.ndarray:
    """Paint the row of one query: ``(1, n, 3)`` RGB."""
    image = np.ones((1, -(-T // cell), 3))
    reach = query // cell + 1
    image[:, :reach] = to_rgb(UNREAD)
    for pattern, colour in reversed(colours.items()):
        _paint(image[:, :reach], row_shares(pattern, range(query, query + 1), cell)[None], colour)
    if cell == 1 and any(pattern.allows(query, query) for pattern in colours):
        image[0, query] = to_rgb(QUERY)
    return image


def _paint(image: np.ndarray, shares: np.ndarray, colour: tuple) -> None:
    opacity = np.where(shares > 0, FAINTEST + (1 - FAINTEST) * np.sqrt(shares), 0)[..., None]
    image += opacity * (np.array(colour) - image)
