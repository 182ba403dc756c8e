"""The tables of a report, apart from how they are shown: the terminal and the page draw both."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparse_tx.masks.cells import counted
from sparse_tx.profiler.records import Profile, Row, Work
from sparse_tx.profiler.report import facts
from sparse_tx.profiler.report.words import (
    UNKNOWN,
    bytes_text,
    count_text,
    difference_text,
    flops_text,
    joined,
    one,
    plain_name,
    rate_text,
    seconds_text,
    share_text,
)

MOST_PARTS = 8
"""Of a whole that are told apart; the smallest of the others are added up."""

OTHER = "other"


@dataclass(frozen=True)
class Cell:
    """One figure: its text, the number to sort by, and whether it is a failure."""

    text: str
    value: float | None = None
    failed: bool = False


@dataclass(frozen=True)
class Column:
    """A column's name, the group of columns it stands under, and how it behaves.

    Attributes:
        name: in a word or two.
        group: what several neighbours have in common, such as ``memory``.
        is_text: aligned to the left, sorted as text.
        is_key: names the row; repeated where a table is cut in two for a narrow terminal.
        meaning: one sentence for who wants to know.
    """

    name: str
    group: str = ""
    is_text: bool = False
    is_key: bool = False
    meaning: str = ""

    @property
    def full_name(self) -> str:
        """With the group."""
        return f"{self.group} {self.name}".strip()


@dataclass(frozen=True)
class Sheet:
    """A table with what a newcomer must be told to read it.

    Attributes:
        key: identifies the table within a page.
        title: what it is.
        explanation: what is to be seen, in plain sentences.
        columns: from left to right.
        rows: cells in the order of the columns.
        notes: what the marks in the cells refer to.
        is_grouped: whether rows of one pattern stand together, apart from the next one's.
    """

    key: str
    title: str
    explanation: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    is_grouped: bool = False

    def without_empty_columns(self) -> "Sheet":
        """The same table without the columns that hold no figure in any row."""
        kept = [
            n
            for n, column in enumerate(self.columns)
            if column.is_key or any(row[n].text != UNKNOWN for row in self.rows)
        ]
        return replace(
            self,
            columns=tuple(self.columns[n] for n in kept),
            rows=tuple(tuple(row[n] for n in kept) for row in self.rows),
        )


def key_columns(profile: Profile) -> list[Column]:
    """The columns that name a setting: pattern, what varies beside it, and length."""
    knobs = [Column(name, is_text=True, is_key=True) for name in facts.varying_knobs(profile)]
    return [
        Column("pattern", is_text=True, is_key=True),
        *knobs,
        Column("length", is_key=True, meaning="tokens of one sequence"),
    ]


def key_cells(row: Row, profile: Profile) -> list[Cell]:
    """The cells of ``key_columns``."""
    setting = row.setting
    return [
        Cell(setting.label),
        *(Cell(facts.knob(setting, name)) for name in facts.varying_knobs(profile)),
        Cell(count_text(setting.model.seq_len), setting.model.seq_len),
    ]


def main_sheet(profile: Profile, works: Sequence[Work]) -> Sheet:
    """Cost by pattern and length, predicted beside measured."""
    rows = [row for row in profile.rows if row.setting.work in works]
    several = len(works) > 1
    columns = [
        *([Column("work", is_text=True, is_key=True)] if several else []),
        *key_columns(profile),
        Column("of dense", "pairs", meaning="attended pairs as a share of dense attention's"),
        Column("FLOPs", "useful", meaning="attention charged for attended pairs alone"),
        Column("predicted", "memory", meaning="peak, from accounting"),
        Column("measured", "memory", meaning="peak, in a process of its own"),
        Column("error", "memory", meaning="predicted above (+) or below (-) measured"),
        Column("predicted", "time", meaning="from short measurements or a stated rate"),
        Column("measured", "time", meaning="median of the timed rounds"),
        Column("error", "time", meaning="predicted above (+) or below (-) measured"),
        Column("per s", "tokens", meaning="~ where it follows from the predicted time"),
        Column("of GEMM", "FLOP/s", meaning="useful FLOPs in a second against a matrix product"),
    ]
    notes = _Notes(profile)
    cells = []
    for row in rows:
        work = [Cell(row.setting.work)] if several else []
        cells.append((*work, *key_cells(row, profile), *_cost_cells(row, profile, notes)))
    names = joined([one(work) for work in works]) if works else "nothing"
    return Sheet(
        key="costs-" + "-".join(works),
        title=f"Cost of {names}",
        explanation=_main_explanation(profile),
        columns=tuple(columns),
        rows=tuple(cells),
        notes=tuple(notes.texts()),
        is_grouped=True,
    ).without_empty_columns()


def _main_explanation(profile: Profile) -> str:
    told = (
        "One line for each pattern and length. Pairs of dense: how many of dense attention's"
        " (query, key) pairs the pattern keeps. Useful FLOPs: arithmetic on those pairs and in the"
        " rest of the model."
    )
    if facts.anything_measured(profile):
        told += (
            " Error: how far the prediction lies above (+) or below (-) the measurement. Of GEMM:"
            " useful FLOPs in a second, against what the machine does in a large matrix product."
        )
    else:
        told += " No line was measured: all figures are predictions."
    return told


class _Notes:
    """Collects failures, which get a number each, and the reasons why rows were not measured."""

    def __init__(self, profile: Profile):
        self._profile = profile
        self._knobs = facts.varying_knobs(profile)
        self._failures: list[str] = []
        self._reasons: dict[str, list[str]] = {}
        self._estimates = False

    def failed(self, row: Row) -> str:
        found = row.measurement
        held = bytes_text(found.peak_bytes)
        seen = f" (last seen: {held})" if found.peak_bytes and held not in found.failure else ""
        self._failures.append(f"{self._where(row)}: {found.failure.rstrip('.')}{seen}")
        return f"failed [{len(self._failures)}]"

    def not_measured(self, row: Row) -> None:
        if row.not_measured:
            self._reasons.setdefault(row.not_measured, []).append(self._where(row))

    def estimated(self) -> None:
        self._estimates = True

    def _where(self, row: Row) -> str:
        name = facts.series_name(row.setting, self._knobs)
        return f"{name} at {count_text(row.setting.model.seq_len)}"

    def texts(self) -> list[str]:
        texts = [f"[{number}] {text}" for number, text in enumerate(self._failures, 1)]
        if self._estimates and facts.anything_measured(self._profile):
            texts.append("~ follows from the predicted time, as there is no measured one")
        for reason, where in self._reasons.items():
            texts.append(f"not measured ({reason}): {'; '.join(where)}")
        return texts


def _cost_cells(row: Row, profile: Profile, notes: _Notes) -> list[Cell]:
    predicted = row.prediction
    memory, seconds = facts.measured_bytes(row), facts.measured_seconds(row)
    share, flops = facts.share_of_dense(row), facts.useful_flops(row)
    memory_error = facts.difference(predicted.peak_bytes, memory)
    time_error = facts.difference(predicted.seconds, seconds)
    rate, of_ceiling = facts.tokens_per_second(row), facts.share_of_ceiling(row, profile)
    estimate = "~" if seconds is None and rate is not None else ""
    if estimate:
        notes.estimated()
    if facts.failure(row):
        mark = notes.failed(row)
        measured_cells = Cell(mark, failed=True), Cell(mark, failed=True)
    else:
        notes.not_measured(row)
        measured_cells = Cell(bytes_text(memory), memory), Cell(seconds_text(seconds), seconds)
    return [
        Cell(share_text(share), share),
        Cell(flops_text(flops), flops),
        Cell(bytes_text(predicted.peak_bytes), predicted.peak_bytes),
        measured_cells[0],
        Cell(difference_text(memory_error), memory_error),
        Cell(seconds_text(predicted.seconds), predicted.seconds),
        measured_cells[1],
        Cell(difference_text(time_error), time_error),
        Cell(estimate + rate_text(rate), rate),
        Cell(UNKNOWN if of_ceiling is None else estimate + share_text(of_ceiling), of_ceiling),
    ]


def folded(parts: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The same parts for all of several wholes, the largest first; small ones become ``other``.

    Args:
        parts: for each whole its parts by name; a part may be missing in some.
    """
    weight: dict[str, float] = {}
    for whole in parts:
        total = sum(whole.values()) or 1
        for name, value in whole.items():
            weight[name] = max(weight.get(name, 0), value / total)
    ranked = sorted((name for name in weight if weight[name] > 0), key=lambda name: -weight[name])
    kept = ranked if len(ranked) <= MOST_PARTS else ranked[: MOST_PARTS - 1]
    result = []
    for whole in parts:
        own = {name: whole.get(name, 0) for name in kept}
        if len(kept) < len(ranked):
            own[OTHER] = own.get(OTHER, 0) + sum(whole.get(name, 0) for name in ranked[len(kept) :])
        result.append(own)
    return result


PARTS = {
    "bytes": (
        lambda row: row.prediction.peak_parts,
        bytes_text,
        "Where the bytes go",
        "Who holds memory at the predicted peak of {work}, for each pattern at its longest length.",
    ),
    "flops": (
        lambda row: row.prediction.useful_flops,
        flops_text,
        "Where the FLOPs go",
        "Useful FLOPs of {work} by part of the model, for each pattern at its longest length.",
    ),
    "seconds": (
        lambda row: row.measurement.parts_s if row.measurement else {},
        seconds_text,
        "Where the time goes",
        "Measured time of {work} by part of the model, for each pattern at the longest length"
        " that was timed part by part.",
    ),
}
"""For each kind of whole: its parts in a row, how they are written, title, and explanation."""


def rows_with_parts(profile: Profile, work: Work, kind: str) -> list[Row]:
    """For each series the row of its longest length that has parts of this kind."""
    get = PARTS[kind][0]
    found = []
    for series in facts.all_series(profile, work):
        known = [row for row in series.rows if any(get(row).values())]
        found += known[-1:]
    return found


def parts_sheet(profile: Profile, work: Work, kind: str) -> Sheet | None:
    """What a whole is made of, at each pattern's longest length; None where nothing is known.

    Args:
        profile: what is reported.
        work: of which work.
        kind: ``bytes``, ``flops`` or ``seconds``.
    """
    get, text, title, explanation = PARTS[kind]
    rows = rows_with_parts(profile, work, kind)
    if not rows:
        return None
    wholes = folded([get(row) for row in rows])
    totals = [sum(parts.values()) for parts in wholes]
    lines = [
        (Cell(plain_name(name)), *_part_cells([parts[name] for parts in wholes], totals, text))
        for name in wholes[0]
    ]
    knobs = facts.varying_knobs(profile)
    return Sheet(
        key=f"{kind}-{work}",
        title=title,
        explanation=explanation.format(work=one(work)),
        columns=(
            Column("part", is_text=True, is_key=True),
            *(
                Column(
                    counted(row.setting.model.seq_len, "token"),
                    facts.series_name(row.setting, knobs),
                )
                for row in rows
            ),
        ),
        rows=(*lines, (Cell("in all"), *(Cell(text(total), total) for total in totals))),
    )


def _part_cells(values: Sequence[float], totals: Sequence[float], text) -> list[Cell]:
    cells = []
    for value, total in zip(values, totals, strict=True):
        percent = round(100 * value / total)
        share = "< 1 %" if value and not percent else f"{percent} %"
        cells.append(Cell(f"{text(value)} ({share})" if value else UNKNOWN, value))
    return cells
