"""Colours and marks, the same for a pattern wherever it is drawn.

Hues after Okabe and Ito, which people with any common colour blindness tell apart, made darker for
white paper and lighter for a dark screen. A pattern has its own mark too, so that no plot depends
on colour alone.
"""

from dataclasses import dataclass

DENSE = -1
"""Number of the yardstick among patterns."""


@dataclass(frozen=True)
class Theme:
    """Colours on one background; ``series`` by number of the pattern, ``parts`` of stacked bars."""

    dense: str
    series: tuple[str, ...]
    parts: tuple[str, ...]
    ink: str
    soft: str
    grid: str
    band: str
    paper: str

    def of_pattern(self, number: int) -> str:
        """The colour of a pattern; after the last one they begin again, with other marks."""
        return self.dense if number == DENSE else self.series[number % len(self.series)]

    def names(self) -> dict[str, str]:
        """The colours by the names that the page's style sheet and plots use."""
        return {
            "dense": self.dense,
            **{f"series-{n}": colour for n, colour in enumerate(self.series)},
            **{f"part-{n}": colour for n, colour in enumerate(self.parts)},
            "ink": self.ink,
            "soft": self.soft,
            "grid": self.grid,
            "band": self.band,
            "paper": self.paper,
        }


LIGHT = Theme(
    dense="#40454f",
    series=("#0072b2", "#d55e00", "#00875f", "#aa3377", "#a67c00", "#5d4fb3", "#8c564b"),
    parts=(
        "#4477aa",
        "#ee8866",
        "#44bb99",
        "#ddbb33",
        "#aa5588",
        "#77aadd",
        "#999933",
        "#b0b4bb",
    ),
    ink="#1c1f26",
    soft="#5b616e",
    grid="#e4e6ea",
    band="rgba(0, 114, 178, 0.13)",
    paper="#ffffff",
)
DARK = Theme(
    dense="#d3d7de",
    series=("#56b4e9", "#ff8f4f", "#34d0a3", "#ec8fd0", "#f0c649", "#ab9dff", "#d0a39a"),
    parts=(
        "#5b8fc4",
        "#ee8866",
        "#44bb99",
        "#ddbb33",
        "#c06f9f",
        "#88bbee",
        "#a8a84a",
        "#8b919c",
    ),
    ink="#e8eaee",
    soft="#a4abb8",
    grid="#30353f",
    band="rgba(86, 180, 233, 0.16)",
    paper="#1b1e24",
)

# Names of plotly's marks, and of matplotlib's, in the same order; dense has the first.
MARKS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "hexagon")
MATPLOTLIB_MARKS = ("o", "s", "D", "^", "v", "p", "h")
_FILLINGS = ("", "-open", "-dot", "-open-dot")


def colour_name(number: int) -> str:
    """The name of a pattern's colour, such as ``series-2``."""
    return "dense" if number == DENSE else f"series-{number % len(LIGHT.series)}"


def mark_name(number: int, variant: int) -> str:
    """The plotly mark of a pattern, filled differently for each variant of its settings."""
    # Where colours begin again, marks are one further, so that no two patterns share both.
    shift = number // len(LIGHT.series) if number >= 0 else 0
    return MARKS[(number + 1 + shift) % len(MARKS)] + _FILLINGS[variant % len(_FILLINGS)]


def matplotlib_mark(number: int) -> str:
    """The matplotlib mark of a pattern."""
    shift = number // len(LIGHT.series) if number >= 0 else 0
    return MATPLOTLIB_MARKS[(number + 1 + shift) % len(MARKS)]
