"""A profile as one HTML page that holds all it needs: plots, pictures, tables, data, scripts.

A picture of the page, such as the README's, is made by a browser, here of its first 1,560 pixels:

    chromium --headless --disable-gpu --hide-scrollbars --virtual-time-budget=10000 \\
        --window-size=1400,1560 --screenshot=docs/profile.png file:///FOLDER/profile.html
"""

import json
import re
from base64 import b64encode
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from sparse_tx.profiler.records import Profile
from sparse_tx.profiler.report import facts
from sparse_tx.profiler.report.bars import parts_plots
from sparse_tx.profiler.report.exchange import profile_to_csv, profile_to_json
from sparse_tx.profiler.report.figures import PatternPicture, pattern_pictures
from sparse_tx.profiler.report.findings import all_findings
from sparse_tx.profiler.report.palette import DARK, LIGHT, colour_name, mark_name
from sparse_tx.profiler.report.plots import agreement_plots, cost_plots
from sparse_tx.profiler.report.sheets import PARTS, main_sheet, parts_sheet
from sparse_tx.profiler.report.summary import sentences
from sparse_tx.profiler.report.words import WORK_NAMES, flops_text

# Pixels of a pattern picture on the page for one in the file, which is drawn for print.
_PICTURE_SCALE = 0.47

_AFTER_COMMA = re.compile(r",(?=[^\d\s])")
_BEFORE_UNIT = re.compile(
    r"(?<=\d) (?=(?:(?:µs|ms|s|min|h|days?|years?|times|[kMGTPEZ]?(?:B|FLOP))\b|%))"
)

# The marks of plotly's names, for the buttons that stand for a legend.
_SHAPES = {
    "circle": '<circle r="5"{}/>',
    "square": '<rect x="-4.5" y="-4.5" width="9" height="9"{}/>',
    "diamond": '<path d="M0-6 6 0 0 6-6 0Z"{}/>',
    "triangle-up": '<path d="M0-6 6 4.5H-6Z"{}/>',
    "triangle-down": '<path d="M0 6 6-4.5H-6Z"{}/>',
    "pentagon": '<path d="M0-6 5.7-1.9 3.5 4.9H-3.5L-5.7-1.9Z"{}/>',
    "hexagon": '<path d="M0-6 5.2-3V3L0 6-5.2 3V-3Z"{}/>',
}
_FILLED = ' fill="currentColor" stroke="var(--paper)" stroke-width="1.5"'
_OPEN = ' fill="var(--paper)" stroke="currentColor" stroke-width="2"'


def page(profile: Profile) -> str:
    """Write the page; it is opened from a file and asks for nothing from the network.

    Whatever comes from the profile is escaped, so that a pattern's name cannot become HTML.
    """
    from jinja2 import Environment
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = _breakable
    works = _works(profile)
    agreement, findings = agreement_plots(profile), all_findings(profile)
    plots = [*agreement, *(plot for work in works for plot in work["all_plots"])]
    pictures = [_picture(picture) for picture in pattern_pictures(profile)]
    ceilings = profile.ceilings
    return environment.from_string(_resource("page.html")).render(
        profile=profile,
        measured=facts.anything_measured(profile),
        sections=_sections(works, bool(agreement), bool(findings), bool(pictures)),
        sentences=sentences(profile),
        lines=[_line(series) for series in facts.all_series(profile)],
        works=works,
        agreement=agreement,
        rows=main_sheet(profile, facts.works(profile)),
        findings=findings,
        pictures=pictures,
        ceiling=flops_text(ceilings.gemm_flops_per_s) if ceilings else "",
        provenance=list(flattened(profile.provenance)),
        csv_address=_address("text/csv", profile_to_csv(profile).encode()),
        json_address=_address("application/json", profile_to_json(profile).encode()),
        light=LIGHT.names(),
        dark=DARK.names(),
        style=Markup(_resource("page.css")),
        script=Markup(_resource("page.js")),
        plotly=Markup(get_plotlyjs()),
        figures=Markup(_safe_json({plot.key: plot.drawn() for plot in plots})),
    )


def _works(profile: Profile) -> list[dict[str, Any]]:
    """The sections of each work: its plots against length, and its parts with their tables."""
    found = []
    for work in facts.works(profile):
        plots, parts = cost_plots(profile, work), parts_plots(profile, work)
        tables = {f"parts-{kind}-{work}": parts_sheet(profile, work, kind) for kind in PARTS}
        name = WORK_NAMES[work]
        found.append(
            {
                "key": work,
                "title": name[0].upper() + name[1:],
                "plots": plots,
                "parts": [(plot, tables[plot.key]) for plot in parts],
                "all_plots": [*plots, *parts],
            }
        )
    return found


def _sections(
    works: list[dict], agreement: bool, findings: bool, pictures: bool
) -> list[tuple[str, str]]:
    """Anchors and names of the page's sections, in its order."""
    parts = [(f"parts-{work['key']}", "Where it goes") for work in works if work["parts"]]
    return [
        ("short", "In short"),
        *([("costs", "Cost against length")] if works else []),
        *([("agreement", "Predicted against measured")] if agreement else []),
        *([("all", "All settings")] if works else []),
        *parts[:1],
        *([("findings", "What follows")] if findings else []),
        *([("patterns", "What each pattern reads")] if pictures else []),
        ("words", "Words"),
        ("provenance", "Origin"),
    ]


@dataclass(frozen=True)
class _Line:
    """One series as the page's legend has it: name, name of its colour, and mark as SVG."""

    name: str
    colour: str
    shape: Any


def _line(series: facts.Series) -> _Line:
    from markupsafe import Markup

    mark = mark_name(series.colour, series.variant)
    shape = mark.removesuffix("-dot").removesuffix("-open")
    look = _OPEN if "-open" in mark else _FILLED
    return _Line(series.name, colour_name(series.colour), Markup(_SHAPES[shape].format(look)))


def _picture(picture: PatternPicture) -> dict[str, Any]:
    return {
        "label": picture.label,
        "notation": picture.notation,
        "reads": picture.reads,
        "length": picture.length,
        "address": _address("image/png", picture.png),
        "width": round(_width_of_png(picture.png) * _PICTURE_SCALE),
    }


def _width_of_png(png: bytes) -> int:
    """The first number of the header chunk, which begins after signature, length and type."""
    return int.from_bytes(png[16:20], "big")


def flattened(provenance: dict, above: str = "") -> list[tuple[str, str]]:
    """Nested provenance as pairs of names and texts: ``machine, cores`` and ``2``."""
    found = []
    for key, value in provenance.items():
        name = f"{above}, {key}" if above else str(key)
        if isinstance(value, dict):
            found += flattened(value, name)
        elif isinstance(value, list | tuple):
            found.append((name, ", ".join(map(_value_text, value))))
        else:
            found.append((name, _value_text(value)))
    return found


def _value_text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _breakable(text: str) -> Any:
    """Escaped, with places to break lines after a pattern's commas, and none before a unit."""
    from markupsafe import Markup, escape

    unbroken = _BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", text)
    return Markup(_AFTER_COMMA.sub(",<wbr>", str(escape(unbroken))))


def _safe_json(value: Any) -> str:
    """JSON that can stand within a script element, whatever texts are in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"


def _resource(name: str) -> str:
    return (files("sparse_tx.profiler.report") / name).read_text(encoding="utf-8")
