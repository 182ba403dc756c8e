"""What pages share: templates, plots and data within one file that asks nothing of the network."""

import json
import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from sparse_tx.profiler.report.palette import DARK, LIGHT, colour_name, mark_name
from sparse_tx.profiler.report.plots import Plot

_AFTER_COMMA = re.compile(r",(?=[^\d\s])")
_BEFORE_UNIT = re.compile(
    r"(?<=\d) (?=(?:(?:µs|ms|s|min|h|days?|years?|times|[kMGTPEZ]?(?:B|FLOP|MAC))\b|%))"
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


@dataclass(frozen=True)
class Line:
    """One series as a page's legend has it: name, name of its colour, and mark as SVG."""

    name: str
    colour: str
    shape: Any


def line(name: str, colour: int, variant: int = 0) -> Line:
    """The entry of a series, by the number of its colour and of its variant."""
    from markupsafe import Markup

    mark = mark_name(colour, variant)
    shape = mark.removesuffix("-dot").removesuffix("-open")
    look = _OPEN if "-open" in mark else _FILLED
    return Line(name, colour_name(colour), Markup(_SHAPES[shape].format(look)))


def render(template: str, drawn: Iterable[Plot], **values: Any) -> str:
    """Write a page; whatever ``values`` hold is escaped, so that no name can become HTML.

    Args:
        template: a file beside this one.
        drawn: all plots of the page.
        **values: what the template names, beside style, scripts, colours and figures.
    """
    from jinja2 import Environment, FunctionLoader
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_resource)
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template(template).render(
        light=LIGHT.names(),
        dark=DARK.names(),
        style=Markup(_resource("page.css")),
        script=Markup(_resource("page.js")),
        plotly=Markup(get_plotlyjs()),
        figures=Markup(_safe_json({plot.key: plot.drawn() for plot in drawn})),
        **values,
    )


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


def data_address(kind: str, content: str | bytes) -> str:
    """Content as the address of a link, of a MIME type such as ``text/csv``."""
    content = content.encode() if isinstance(content, str) else content
    return f"data:{kind};base64,{b64encode(content).decode()}"


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


def _resource(name: str) -> str:
    return (files("sparse_tx.profiler.report") / name).read_text(encoding="utf-8")
