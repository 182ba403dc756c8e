"""A profile in the terminal: sentences and tables, no figure of which is ever cut off."""

from collections.abc import Sequence
from itertools import groupby, pairwise
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement as Width
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sparse_tx.profiler.records import Profile
from sparse_tx.profiler.report import facts
from sparse_tx.profiler.report.findings import all_findings
from sparse_tx.profiler.report.sheets import PARTS, Column, Sheet, main_sheet, parts_sheet
from sparse_tx.profiler.report.summary import sentences

WIDTH_OF_FILES = 160
"""Columns where the output is no terminal: a number cut short is worse than a long line."""

NARROWEST_KEY = 12
"""Columns of the terminal that a pattern's name is given at least; longer ones are folded."""

WIDEST_HEADER = 24
"""Columns of the terminal that the name of a column of figures may take."""


def tables(profile: Profile) -> list[RenderableType]:
    """Show a profile in a terminal.

    Tables too wide for the console are cut into bands below one another, each of which begins with
    the columns that name a row, so print them at any width of 60 or more; for output that is no
    terminal, make the console ``WIDTH_OF_FILES`` wide.

    Args:
        profile: what is reported.

    Returns:
        What ``rich.console.Console.print`` takes: the summary, then a block for each table.
    """
    heading = Text(profile.title, style="bold")
    summary = [Text(f"- {sentence}") for sentence in sentences(profile)]
    blocks: list[RenderableType] = [Group(heading, *summary)]
    sheets = [main_sheet(profile, [work]) for work in facts.works(profile)]
    if work := facts.main_work(profile):
        sheets += filter(None, (parts_sheet(profile, work, kind) for kind in PARTS))
    sheets += all_findings(profile)
    return [*blocks, *(BandedTable(sheet) for sheet in sheets)]


class BandedTable:
    """A sheet as tables that fit the console: as many below one another as it takes."""

    def __init__(self, sheet: Sheet):
        self._sheet = sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sheet = self._sheet
        yield Text("")
        yield Text(sheet.title, style="bold")
        yield Text(sheet.explanation, style="dim")
        for band in self._bands(console, options):
            yield self._table(band, options.max_width)
        for note in sheet.notes:
            yield Padding(Text(note), (0, 0, 0, 1))

    def _bands(self, console: Console, options: ConsoleOptions) -> list[list[int]]:
        """Numbers of the columns of each band; what stands under one heading stays together."""
        columns = list(enumerate(self._sheet.columns))
        keys = [n for n, column in columns if column.is_key]
        rest = [(n, column) for n, column in columns if not column.is_key]
        # A column without a group is a group of its own.
        groups = groupby(rest, key=lambda entry: entry[1].group or entry[0])
        bands: list[list[int]] = [list(keys)]
        for numbers in ([n for n, _ in members] for _, members in groups):
            if self._fits([*keys, *numbers], console, options):
                pieces = [numbers]
            else:
                pieces = [[n] for n in numbers]
            for piece in pieces:
                band = bands[-1]
                if len(band) > len(keys) and not self._fits([*band, *piece], console, options):
                    bands.append([*keys, *piece])
                else:
                    band += piece
        return bands

    def _fits(self, band: Sequence[int], console: Console, options: ConsoleOptions) -> bool:
        room = options.update(max_width=10_000, min_width=1)
        table = self._table(band, options.max_width)
        return Width.get(console, room, table).maximum <= options.max_width

    def _table(self, band: Sequence[int], width: int) -> Table:
        sheet = self._sheet
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for n in band:
            column = sheet.columns[n]
            table.add_column(_header(column), **_layout(column, width))
        for row, following in pairwise([*sheet.rows, None]):
            ends = following is not None and following[0].text != row[0].text
            texts = [Text(row[n].text, style="red" if row[n].failed else "") for n in band]
            table.add_row(*texts, end_section=sheet.is_grouped and ends)
        return table


def _header(column: Column) -> Text:
    lines = [*_broken(column.group), *_broken(column.name)]
    return Text("\n".join(lines))


def _broken(name: str) -> list[str]:
    """A name in lines of a column's width, broken after commas where it has any."""
    if len(name) <= WIDEST_HEADER:
        return [name] if name else []
    return wrap(name.replace(",", ", "), WIDEST_HEADER, break_on_hyphens=False)


def _layout(column: Column, width: int) -> dict:
    """Names and sentences are folded, so that nothing is lost; figures stay on one line."""
    if not column.is_text:
        return {"justify": "right", "no_wrap": True}
    share = max(NARROWEST_KEY, width // 3)
    return {"justify": "left", "overflow": "fold", "max_width": share}
