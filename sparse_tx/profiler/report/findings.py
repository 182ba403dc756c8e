"""Tables of what was found over all lengths: growth, crossovers, reach, room, totals, cache."""

from math import isfinite

from sparse_tx.masks.cells import counted
from sparse_tx.profiler.records import Fit, Profile, Reach, Row
from sparse_tx.profiler.report import facts
from sparse_tx.profiler.report.sheets import Cell, Column, Sheet, key_cells, key_columns
from sparse_tx.profiler.report.words import (
    UNKNOWN,
    bytes_text,
    count_text,
    flops_text,
    quantity_name,
    quantity_text,
    seconds_text,
)

_PATTERN = Column("pattern", is_text=True, is_key=True)
_WORK = Column("work", is_text=True, is_key=True)
_QUANTITY = Column("cost", is_text=True, is_key=True)
_HOW = Column("how it was found", is_text=True)


def all_findings(profile: Profile) -> list[Sheet]:
    """Those of the tables that have a row."""
    sheets = [
        laws_sheet(profile),
        crossovers_sheet(profile),
        reaches_sheet(profile),
        fits_sheet(profile),
        totals_sheet(profile),
        cache_sheet(profile),
    ]
    return [sheet for sheet in sheets if sheet.rows]


def laws_sheet(profile: Profile) -> Sheet:
    """Exponents of growth with their intervals."""
    shown = _recompute_matters(profile.laws)
    rows = []
    for law in profile.laws:
        known = isfinite(law.low) and isfinite(law.high)
        interval = f"{law.low:.2f} to {law.high:.2f}" if known else UNKNOWN
        span = f"{count_text(min(law.lengths))} to {count_text(max(law.lengths))}"
        rows.append(
            (
                Cell(law.label),
                Cell(law.work),
                *_recompute(law, shown),
                Cell(quantity_name(law.quantity)),
                Cell(f"{law.exponent:.2f}", law.exponent),
                Cell(interval, law.low if known else None),
                Cell(f"{span} ({len(law.lengths)})", max(law.lengths)),
                Cell("measured" if law.measured else "predicted"),
            )
        )
    return Sheet(
        key="laws",
        title="How cost grows with length",
        explanation=(
            "A cost that grows as length to the power of the exponent: at 1, twice the length costs"
            " twice as much; at 2, four times as much. The true exponent lies in the interval with"
            " 95 % confidence, if the cost follows such a law at all."
        ),
        columns=(
            _PATTERN,
            _WORK,
            *_recompute_column(shown),
            _QUANTITY,
            Column("exponent"),
            Column("95 % interval"),
            Column("lengths (how many)"),
            Column("values", is_text=True),
        ),
        rows=tuple(rows),
    )


_CROSSINGS = {
    "measured": "between two measured lengths",
    "counted": "between two lengths, counted exactly",
    "predicted": "between two lengths, predicted",
    "below": "cheaper at the shortest length already",
    "extrapolated": "extrapolated from the fits",
    "never": "costs as much as dense or more, as far as can be told",
}


def crossovers_sheet(profile: Profile) -> Sheet:
    """From which length on patterns cost less than dense."""
    shown = _recompute_matters(profile.crossovers)
    rows = []
    for crossing in profile.crossovers:
        mark = {"below": "<= ", "extrapolated": "~", "predicted": "~"}.get(crossing.how, "")
        text = "never" if crossing.length is None else mark + count_text(crossing.length)
        rows.append(
            (
                Cell(crossing.label),
                Cell(crossing.work),
                *_recompute(crossing, shown),
                Cell(quantity_name(crossing.quantity)),
                Cell(text, crossing.length),
                Cell(_CROSSINGS[crossing.how]),
            )
        )
    return Sheet(
        key="crossovers",
        title="From which length on a pattern costs less than dense",
        explanation=(
            "Below the length in the table dense attention is the cheaper one, above it the"
            " pattern is; at a length marked <=, the shortest that was asked for, it already is."
        ),
        columns=(
            _PATTERN,
            _WORK,
            *_recompute_column(shown),
            _QUANTITY,
            Column("cheaper from (tokens)"),
            _HOW,
        ),
        rows=tuple(rows),
    )


def reaches_sheet(profile: Profile) -> Sheet:
    """The longest sequences at the cost that dense has at a stated length."""
    rows = [
        (
            Cell(reach.label),
            Cell(quantity_name(reach.quantity)),
            Cell(count_text(reach.dense_len), reach.dense_len),
            Cell(quantity_text(reach.budget, reach.quantity), reach.budget),
            *_length_reached(reach),
            Cell(_values_of(reach)),
            Cell(reach.how),
        )
        for reach in profile.reaches
    ]
    return Sheet(
        key="reaches",
        title="How far a pattern reaches at the cost of dense",
        explanation=(
            "What dense attention of one layer costs at one length, and the longest sequence that"
            " the pattern can have for the same."
        ),
        columns=(
            _PATTERN,
            _QUANTITY,
            Column("dense length", is_key=True),
            Column("its cost"),
            Column("length of the pattern"),
            Column("longer"),
            Column("values", is_text=True),
            _HOW,
        ),
        rows=tuple(rows),
    )


def _length_reached(reach: Reach) -> tuple[Cell, Cell]:
    """The length, and how many times dense attention's it is."""
    if reach.length is None:
        return Cell(UNKNOWN), Cell(UNKNOWN)
    times = reach.length / reach.dense_len
    return Cell(count_text(reach.length), reach.length), Cell(f"{times:,.1f} x", times)


def _values_of(reach: Reach) -> str:
    if reach.length is None:
        return UNKNOWN
    if reach.measured:
        return "measured"
    return "counted" if reach.quantity in ("useful_flops", "weights_bytes") else "predicted"


def fits_sheet(profile: Profile) -> Sheet:
    """What memory has room for, with the run that confirmed it."""
    shown = _recompute_matters([fit.setting.model for fit in profile.fits])
    rows = []
    for fit in profile.fits:
        at = f"batch of {counted(fit.setting.model.seq_len, 'token')} each"
        largest = "length" if fit.largest == "seq_len" else at
        rows.append(
            (
                Cell(fit.setting.label),
                Cell(fit.setting.work),
                *_recompute(fit.setting.model, shown),
                Cell(largest),
                Cell(bytes_text(fit.memory_bytes), fit.memory_bytes),
                Cell(count_text(fit.value) if fit.value else "nothing fits", fit.value),
                Cell(bytes_text(fit.peak_bytes), fit.peak_bytes),
                _confirmation(fit),
            )
        )
    return Sheet(
        key="fits",
        title="What the memory has room for",
        explanation=(
            "The longest sequence that the model has positions for, or the largest batch, whose"
            " predicted peak stays within the memory, 3 % of the model's part left free, and what a"
            " run at it needed. Both include what the process holds before it makes a model."
        ),
        columns=(
            _PATTERN,
            _WORK,
            *_recompute_column(shown),
            Column("largest", is_text=True, is_key=True),
            Column("memory"),
            Column("room for"),
            Column("predicted peak"),
            Column("confirmed by a run", is_text=True),
        ),
        rows=tuple(rows),
    )


def _confirmation(fit: Fit) -> Cell:
    found = fit.confirmation
    if found is None:
        return Cell(fit.not_confirmed or UNKNOWN)
    if found.failure:
        return Cell(found.failure, failed=True)
    if found.peak_bytes is None:
        return Cell("it ran")
    beyond = " (more than the memory)" if facts.peak_of_run(fit) > fit.memory_bytes else ""
    return Cell(f"{bytes_text(facts.peak_of_run(fit))}{beyond}")


def totals_sheet(profile: Profile) -> Sheet:
    """What a whole training run costs, for each pattern at its longest length."""
    tokens = profile.training_tokens
    rows = []
    for series in facts.all_series(profile, "train") if tokens else []:
        row = series.longest
        steps = -(-tokens // facts.tokens_of_work(row))
        seconds = row.prediction.seconds
        measured = facts.measured_seconds(row)
        flops = facts.useful_flops(row) * steps
        rows.append(
            (
                *key_cells(row, profile),
                Cell(count_text(steps), steps),
                Cell(flops_text(flops), flops),
                _run_time(seconds, steps),
                _run_time(measured, steps),
            )
        )
    return Sheet(
        key="totals",
        title="What a whole training run costs",
        explanation=(
            f"Training on {count_text(tokens or 0)} tokens, in whole steps of one batch: useful"
            " FLOPs, and the time of that many steps as predicted and as measured. Evaluations and"
            " checkpoints come on top."
        ),
        columns=(
            *key_columns(profile),
            Column("steps"),
            Column("useful FLOPs"),
            Column("predicted", "time,"),
            Column("by measured steps", "time,"),
        ),
        rows=tuple(rows),
    )


def _run_time(per_step: float | None, steps: int) -> Cell:
    total = None if per_step is None else per_step * steps
    return Cell(seconds_text(total), total)


def cache_sheet(profile: Profile) -> Sheet:
    """Keys and values that generation keeps and reads, at each pattern's longest length."""
    longest: dict[str, Row] = {}
    for row in profile.rows:
        name = facts.series_name(row.setting, facts.varying_knobs(profile))
        known = longest.setdefault(name, row)
        if row.setting.model.seq_len > known.setting.model.seq_len:
            longest[name] = row
    rows = []
    for row in longest.values():
        told = row.prediction
        figures = told.cache_allocated_bytes, told.cache_stored_bytes, told.cache_read_bytes
        cells = [Cell(bytes_text(figure), figure) for figure in figures]
        rows.append((*key_cells(row, profile), *cells))
    return Sheet(
        key="cache",
        title="Cache of keys and values",
        explanation=(
            "Taken: the memory of a cache with room for that many tokens. Stored: what it must hold"
            " after them, since some later token will read it. Read: by the step of the last token."
            " A strided pattern stores everything and reads little of it at a time."
        ),
        columns=(
            *key_columns(profile),
            Column("taken"),
            Column("stored"),
            Column("read by a step"),
        ),
        rows=tuple(rows),
    )


def _recompute_matters(found) -> bool:
    return any(entry.recompute for entry in found)


def _recompute_column(shown: bool) -> list[Column]:
    return [Column("recompute", is_text=True, is_key=True)] if shown else []


def _recompute(entry, shown: bool) -> list[Cell]:
    return [Cell("on" if entry.recompute else "off")] if shown else []
