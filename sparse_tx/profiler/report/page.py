"""A profile as one HTML page that holds all it needs: plots, pictures, tables, data, scripts.

A picture of the page, such as the README's, is made by a browser, here of its first 1,560 pixels:

    chromium --headless --disable-gpu --hide-scrollbars --virtual-time-budget=10000 \\
        --window-size=1400,1560 --screenshot=docs/profile.png file:///FOLDER/profile.html
"""

from typing import Any

from sparse_tx.profiler.records import Profile
from sparse_tx.profiler.report import facts
from sparse_tx.profiler.report.bars import parts_plots
from sparse_tx.profiler.report.exchange import profile_to_csv, profile_to_json
from sparse_tx.profiler.report.figures import PatternPicture, pattern_pictures
from sparse_tx.profiler.report.findings import all_findings
from sparse_tx.profiler.report.plots import agreement_plots, cost_plots
from sparse_tx.profiler.report.render import data_address, flattened, line, render
from sparse_tx.profiler.report.sheets import PARTS, main_sheet, parts_sheet
from sparse_tx.profiler.report.summary import sentences
from sparse_tx.profiler.report.words import WORK_NAMES, flops_text

# Pixels of a pattern picture on the page for one in the file, which is drawn for print.
_PICTURE_SCALE = 0.47


def page(profile: Profile) -> str:
    """Write the page; it is opened from a file and asks for nothing from the network.

    Whatever comes from the profile is escaped, so that a pattern's name cannot become HTML.
    """
    works = _works(profile)
    agreement, findings = agreement_plots(profile), all_findings(profile)
    pictures = [_picture(picture) for picture in pattern_pictures(profile)]
    ceilings = profile.ceilings
    return render(
        "page.html",
        [*agreement, *(plot for work in works for plot in work["all_plots"])],
        title=profile.title,
        files="profile",
        profile=profile,
        measured=facts.anything_measured(profile),
        sections=_sections(works, bool(agreement), bool(findings), bool(pictures)),
        sentences=sentences(profile),
        lines=[
            line(series.name, series.colour, series.variant) for series in facts.all_series(profile)
        ],
        works=works,
        agreement=agreement,
        rows=main_sheet(profile, facts.works(profile)),
        findings=findings,
        pictures=pictures,
        ceiling=flops_text(ceilings.gemm_flops_per_s) if ceilings else "",
        provenance=list(flattened(profile.provenance)),
        csv_address=data_address("text/csv", profile_to_csv(profile)),
        json_address=data_address("application/json", profile_to_json(profile)),
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


def _picture(picture: PatternPicture) -> dict[str, Any]:
    return {
        "label": picture.label,
        "notation": picture.notation,
        "reads": picture.reads,
        "length": picture.length,
        "address": data_address("image/png", picture.png),
        "width": round(_width_of_png(picture.png) * _PICTURE_SCALE),
    }


def _width_of_png(png: bytes) -> int:
    """The first number of the header chunk, which begins after signature, length and type."""
    return int.from_bytes(png[16:20], "big")
