"""A comparison of modules for maps in a terminal, and as files."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from sparse_tx.profiler.maps import MapProfile
from sparse_tx.profiler.report.files import write_contents
from sparse_tx.profiler.report.map_exchange import maps_to_csv, maps_to_json
from sparse_tx.profiler.report.map_page import map_page
from sparse_tx.profiler.report.map_plots import map_figure
from sparse_tx.profiler.report.map_words import map_sentences, map_sheet
from sparse_tx.profiler.report.table import BandedTable

_CONTENTS = {
    "maps.json": maps_to_json,
    "maps.csv": maps_to_csv,
    "maps.png": map_figure,
    "maps.html": map_page,
}


def map_tables(profile: MapProfile) -> list[RenderableType]:
    """What a terminal shows: sentences, then a table, as ``tables`` of a profile of lengths."""
    heading = Text(profile.title, style="bold")
    summary = [Text(f"- {sentence}") for sentence in map_sentences(profile)]
    return [Group(heading, *summary), BandedTable(map_sheet(profile))]


def write_map_report(profile: MapProfile, folder: str | Path) -> dict[str, Path]:
    """Write page, picture and data, as ``write_report`` does of a profile of lengths.

    Returns:
        The paths by ending: ``json``, ``csv``, ``png`` and ``html``.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    return write_contents(profile, folder, _CONTENTS)
