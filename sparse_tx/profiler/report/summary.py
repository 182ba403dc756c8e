"""A profile in a few plain sentences, computed from its figures."""

from statistics import median

from sparse_tx.masks.cells import counted
from sparse_tx.profiler.records import Profile, Row
from sparse_tx.profiler.report import facts
from sparse_tx.profiler.report.words import (
    bytes_text,
    count_text,
    joined,
    one,
    seconds_text,
    share_text,
)

MOST_PATTERNS = 3
"""Of which the summary speaks; the table has all."""


def sentences(profile: Profile) -> list[str]:
    """What a newcomer should know of the profile, the most important first."""
    work = facts.main_work(profile)
    if work is None:
        return ["There is nothing to report: no pattern and length was asked for."]
    found = _headlines(_rows_to_name(profile), profile)
    found += [*_crossovers(profile), *_room(profile), *_accuracy(profile)]
    return [*found, *_caveats(profile), *_gaps(profile)]


def _rows_to_name(profile: Profile) -> list[Row]:
    """The longest sequence of the patterns that reach furthest; dense where nothing else is."""
    lines = facts.all_series(profile, facts.main_work(profile))
    sparse = [series.longest for series in lines if series.colour >= 0]
    rows = sparse or [series.longest for series in lines]
    ranked = sorted(rows, key=lambda row: (-row.setting.model.seq_len, facts.useful_flops(row)))
    named: dict[str, Row] = {}
    for row in ranked:
        named.setdefault(row.setting.label, row)
    return list(named.values())[:MOST_PATTERNS]


def _headlines(rows: list[Row], profile: Profile) -> list[str]:
    """A sentence or two for each row; what dense attention takes is said once for each length."""
    told: list[Row] = []
    found = []
    for row in rows:
        dense = _dense_beside(row, profile)
        said = [_headline(row, profile)]
        times = _times_as_long(row, dense) if dense else ""
        if dense and any(dense is other for other in told):
            said += [f"Dense attention takes {times} as long"] if times else []
        elif dense:
            said.append(f"Dense attention {_costs(dense)}" + (f", {times} as long" * bool(times)))
            told.append(dense)
        found.append(". ".join(said) + ".")
    return found


def _headline(row: Row, profile: Profile) -> str:
    variant = facts.variant_text(row.setting, facts.varying_knobs(profile))
    with_ = f" with {row.setting.label}" + (f" ({variant})" if variant else "")
    pairs = ""
    if not facts.is_dense(row):
        pairs = f", reading {share_text(facts.share_of_dense(row))} of dense attention's pairs"
    text = f"{_subject(row)}{with_} {_costs(row)}{pairs}"
    if facts.failure(row):
        text = f"{text}; when tried, it failed: {facts.failure(row).rstrip('.')}"
    return text


def _times_as_long(row: Row, dense: Row) -> str:
    """``3.9 times``, ``twice``; empty where there is no saying, or no difference to speak of."""
    own, other = facts.best_seconds(row), facts.best_seconds(dense)
    if not (own and other) or other / own < 1.05:
        return ""
    ratio = other / own
    if 1.95 < ratio < 2.05:
        return "twice"
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _subject(row: Row) -> str:
    tokens = counted(row.setting.model.seq_len, "token")
    batch = row.setting.training.batch_size
    if batch > 1:
        tokens = f"{count_text(batch)} x {tokens}"
    return {
        "attention": f"Attention of one layer, forward and backward, over {tokens}",
        "forward": f"A forward pass over {tokens}",
        "train": f"A training step of {tokens}",
        "prefill": f"Reading a prompt of {tokens}",
        "decode": f"Writing one further token after {tokens}",
    }[row.setting.work]


def _costs(row: Row) -> str:
    """``takes 41 s and 9.8 GB (measured)``; what is predicted is said to be about so much."""
    seconds, memory = facts.measured_seconds(row), facts.measured_bytes(row)
    measured = [
        text
        for value, text in ((seconds, seconds_text(seconds)), (memory, bytes_text(memory)))
        if value is not None
    ]
    predicted = [
        text
        for known, value, text in (
            (seconds, row.prediction.seconds, seconds_text(row.prediction.seconds)),
            (memory, row.prediction.peak_bytes, bytes_text(row.prediction.peak_bytes)),
        )
        if known is None and value is not None
    ]
    said = []
    if measured:
        said.append(f"takes {joined(measured)} (measured)")
    if predicted:
        said.append(f"would take about {joined(predicted)} (predicted)")
    return joined(said)


def _dense_beside(row: Row, profile: Profile) -> Row | None:
    """The row of dense attention that is like ``row`` in all else."""
    if facts.is_dense(row):
        return None
    knobs = facts.varying_knobs(profile)

    def rest(other: Row) -> tuple:
        setting = other.setting
        return setting.work, setting.model.seq_len, facts.variant_text(setting, knobs)

    same = (other for other in profile.rows if facts.is_dense(other) and rest(other) == rest(row))
    return next(same, None)


def _crossovers(profile: Profile) -> list[str]:
    """From where on each pattern is faster than dense."""
    work = facts.main_work(profile)
    from_length: dict[str, list[str]] = {}
    for crossing in profile.crossovers:
        if (crossing.work, crossing.quantity) != (work, "seconds") or crossing.length is None:
            continue
        where = f"from {count_text(crossing.length)} tokens on"
        if crossing.how in ("extrapolated", "predicted"):
            where = f"from about {count_text(crossing.length)} tokens on ({crossing.how})"
        if crossing.how == "below":
            where = f"at {count_text(crossing.length)} tokens already"
        recompute = " (recomputed)" if crossing.recompute else ""
        from_length.setdefault(where, []).append(crossing.label + recompute)
    return [
        f"With {joined(patterns)}, {one(work)} takes less time than with dense attention {where}."
        for where, patterns in from_length.items()
    ]


def _room(profile: Profile) -> list[str]:
    found = []
    for fit in profile.fits:
        if fit.largest != "seq_len" or not fit.value:
            continue
        confirmed, held = "", facts.peak_of_run(fit)
        if held is not None:
            confirmed = f"; a run of it took {bytes_text(held)}"
        recompute = " and recomputation" if fit.setting.model.recompute else ""
        batch = fit.setting.training.batch_size
        texts = f"{batch} x " if batch > 1 else ""
        found.append(
            f"By prediction, {bytes_text(fit.memory_bytes)} of memory have room for"
            f" {one(fit.setting.work)} of {texts}{count_text(fit.value)} tokens with"
            f" {fit.setting.label}{recompute}{confirmed}."
        )
    return found[:MOST_PATTERNS]


def _accuracy(profile: Profile) -> list[str]:
    """How far predictions were off, where there is a measurement beside them."""
    memory = [
        facts.difference(row.prediction.peak_bytes, facts.measured_bytes(row))
        for row in profile.rows
    ]
    time = [
        facts.difference(row.prediction.seconds, facts.measured_seconds(row))
        for row in profile.rows
    ]
    said = []
    for name, differences in (("memory", memory), ("time", time)):
        sizes = [abs(value) for value in differences if value is not None]
        if len(sizes) == 1:
            off = share_text(sizes[0], digits=2)
            said.append(f"Predicted {name} is off by {off} in the one measured setting.")
        elif sizes:
            middle, most = (share_text(size, digits=2) for size in (median(sizes), max(sizes)))
            said.append(
                f"Predicted {name} is off by {middle} (median of {len(sizes)} measured settings),"
                f" and by {most} at most."
            )
    return said


def _caveats(profile: Profile) -> list[str]:
    """What accounting does not know."""
    if any(row.setting.training.precision != "fp32" for row in profile.rows):
        return ["Memory is predicted for float32, and computing in 16 bits takes less of it."]
    return []


def _gaps(profile: Profile) -> list[str]:
    """What failed and what was not measured, in numbers; the tables name each."""
    total, said = len(profile.rows), []
    untimed = sum(row.prediction.seconds is None for row in profile.rows)
    if untimed and profile.ceilings is not None:
        said.append(
            f"The times of {untimed} of {total} settings are not predicted: of the two short runs"
            " that tell them, one did not end in time or in memory; a larger --limit_s may help."
        )
    if not facts.anything_measured(profile):
        return [*said, "None of these settings was measured: all figures are predictions."]
    failed = sum(facts.failure(row) is not None for row in profile.rows)
    skipped = sum(row.measurement is None for row in profile.rows)
    if failed:
        said.append(f"{failed} of {total} settings failed; the notes below the table say how.")
    if skipped:
        said.append(f"{skipped} of {total} settings were predicted and not measured.")
    return said
