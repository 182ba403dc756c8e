"""What follows from rows: medians, differences, rates, and the series that a plot shows."""

from dataclasses import dataclass
from statistics import median

from sparse_tx.patterns import Dense
from sparse_tx.profiler.records import WORKS, Fit, Profile, Row, Setting, Work


def measured_seconds(row: Row) -> float | None:
    """The median of the timed rounds; None if there is none, or the work failed."""
    found = row.measurement
    return median(found.seconds) if found and found.seconds and not found.failure else None


def measured_bytes(row: Row) -> int | None:
    """The measured peak; None if it was not measured, or the work failed before it was reached."""
    return row.measurement.peak_bytes if row.measurement and not row.measurement.failure else None


def failure(row: Row) -> str | None:
    """What went wrong in the measurement, if anything."""
    return row.measurement.failure if row.measurement else None


def best_seconds(row: Row) -> float | None:
    """Measured where there is a measurement, else predicted."""
    found = measured_seconds(row)
    return row.prediction.seconds if found is None else found


def useful_flops(row: Row) -> int:
    """Useful FLOPs of all parts of the work."""
    return sum(row.prediction.useful_flops.values())


def share_of_dense(row: Row) -> float:
    """Attended pairs as a share of those of dense causal attention."""
    return row.prediction.pairs / row.prediction.dense_pairs if row.prediction.dense_pairs else 0.0


def difference(predicted: float | None, measured: float | None) -> float | None:
    """How far a prediction lies above (+) or below (-) the measurement, relative to the latter."""
    return predicted / measured - 1 if predicted is not None and measured else None


def tokens_of_work(row: Row) -> int:
    """Tokens that the work is done for: one a text in decoding, else all of the batch."""
    setting = row.setting
    if setting.work == "decode":
        return setting.training.batch_size
    return setting.model.seq_len * setting.training.batch_size


def tokens_per_second(row: Row) -> float | None:
    """Tokens that the work is done for, in a second; by measured time where there is one."""
    seconds = best_seconds(row)
    return tokens_of_work(row) / seconds if seconds else None


def share_of_ceiling(row: Row, profile: Profile) -> float | None:
    """Useful FLOPs in a second against the machine's matrix product; None without ceilings."""
    seconds = best_seconds(row)
    if not (seconds and profile.ceilings and profile.ceilings.gemm_flops_per_s):
        return None
    return useful_flops(row) / seconds / profile.ceilings.gemm_flops_per_s


def is_dense(row: Row) -> bool:
    """Whether every head of every layer reads all that precedes it, by its notation."""
    layers = row.setting.model.stack.layers
    return all(isinstance(group, Dense) for layer in layers for group in layer.groups)


def works(profile: Profile) -> list[Work]:
    """The works of the profile's rows, in the order of ``WORKS``."""
    found = {row.setting.work for row in profile.rows}
    return [work for work in WORKS if work in found]


def main_work(profile: Profile) -> Work | None:
    """What most readers look for first: the training step where there is one."""
    found = works(profile)
    return "train" if "train" in found else (found[0] if found else None)


def peak_of_run(fit: Fit) -> int | None:
    """What the run that was to confirm a fit held in all; None if there was none, or it failed."""
    found = fit.confirmation
    if found is None or found.failure or found.peak_bytes is None:
        return None
    return found.peak_bytes + found.baseline_bytes


def labels(profile: Profile) -> list[str]:
    """The patterns as the user wrote them, in the order asked."""
    return list(dict.fromkeys(row.setting.label for row in profile.rows))


# What may differ between settings beside pattern and length, and how its value is written.
_KNOBS = {
    "recompute": lambda setting: "on" if setting.model.recompute else "off",
    "batch": lambda setting: str(setting.training.batch_size),
    "engine": lambda setting: setting.model.engine,
    "optimiser": lambda setting: setting.training.optimiser,
    "precision": lambda setting: setting.training.precision,
    "device": lambda setting: setting.device,
}


def varying_knobs(profile: Profile) -> list[str]:
    """Names of the settings beside pattern and length that a reader must be told row by row.

    Those in which rows differ, and ``recompute`` also where it is on throughout.
    """
    values = {name: {get(row.setting) for row in profile.rows} for name, get in _KNOBS.items()}
    return [
        name
        for name, found in values.items()
        if len(found) > 1 or (name == "recompute" and "on" in found)
    ]


def knob(setting: Setting, name: str) -> str:
    """The value of one of ``varying_knobs``."""
    return _KNOBS[name](setting)


def variant_text(setting: Setting, knobs: list[str]) -> str:
    """What sets a setting apart from others of its pattern: ``recompute on, batch 4``."""
    return ", ".join(f"{name} {knob(setting, name)}" for name in knobs)


def series_name(setting: Setting, knobs: list[str]) -> str:
    """Pattern and variant, as a legend has them."""
    variant = variant_text(setting, knobs)
    return f"{setting.label} ({variant})" if variant else setting.label


@dataclass(frozen=True)
class Series:
    """The rows of one line of a plot, by length.

    Attributes:
        name: pattern and variant, as the legend has them.
        label: the pattern as the user wrote it.
        colour: number of the pattern, the same wherever it is drawn; -1 for dense.
        variant: number of the variant among those of the profile.
        rows: by rising length.
    """

    name: str
    label: str
    colour: int
    variant: int
    rows: tuple[Row, ...]

    @property
    def longest(self) -> Row:
        """The row of the longest sequence."""
        return self.rows[-1]


def all_series(profile: Profile, work: Work | None = None) -> list[Series]:
    """The lines of one work's plots, or of all works joined, in the order asked."""
    knobs = varying_knobs(profile)
    colours = pattern_numbers(profile)
    variant_numbers: dict[str, int] = {}
    rows_of: dict[str, list[Row]] = {}
    for row in profile.rows:
        text = variant_text(row.setting, knobs)
        variant_numbers.setdefault(text, len(variant_numbers))
        if work is None or row.setting.work == work:
            rows_of.setdefault(series_name(row.setting, knobs), []).append(row)
    return [
        Series(
            name=name,
            label=rows[0].setting.label,
            colour=colours[rows[0].setting.label],
            variant=variant_numbers[variant_text(rows[0].setting, knobs)],
            rows=tuple(sorted(rows, key=lambda row: row.setting.model.seq_len)),
        )
        for name, rows in rows_of.items()
    ]


def pattern_numbers(profile: Profile) -> dict[str, int]:
    """A number for each pattern, by which it has its colour; dense, the yardstick, has -1."""
    dense = {row.setting.label for row in profile.rows if is_dense(row)}
    sparse = [label for label in labels(profile) if label not in dense]
    return dict.fromkeys(dense, -1) | {label: number for number, label in enumerate(sparse)}


def anything_measured(profile: Profile) -> bool:
    """Whether there is a measurement at all, failed ones included."""
    return any(row.measurement for row in profile.rows)
