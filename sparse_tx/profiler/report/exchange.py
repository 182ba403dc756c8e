"""A profile as text for other programs: JSON without loss, and CSV with a line for each row."""

import csv
import io
import json
from dataclasses import fields, is_dataclass
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sparse_tx.errors import UserError
from sparse_tx.profiler.records import Profile, Row
from sparse_tx.profiler.report import facts

FORMAT = "sparse_tx profile 2"
"""Names what a JSON file holds; the number rises when an older reader could not read it."""

PART_COLUMNS = ("peak.", "flops.", "time.")
"""How the names of CSV columns begin that hold parts of a whole."""


def profile_to_json(profile: Profile) -> str:
    """Everything a profile holds; ``profile_from_json`` is the inverse.

    The text is JSON in the strict sense: numbers that JSON lacks, such as an infinite end of an
    interval, are written as the strings ``"inf"``, ``"-inf"`` and ``"nan"``. Values of
    ``provenance`` that JSON has no form for are written as ``str`` has them.
    """
    return json.dumps({"format": FORMAT, "profile": _plain(profile)}, indent=1, allow_nan=False)


def profile_from_json(text: str) -> Profile:
    """Read what ``profile_to_json`` wrote, the same to the last digit.

    Raises:
        UserError: the text is no JSON, or not that of a profile that this version writes.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"this is not the JSON of a profile: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        written = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise UserError(f"this JSON is of '{written}'; a profile begins with format '{FORMAT}'")
    try:
        return _typed(found["profile"], Profile)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"this profile cannot be read: {error}; was it edited?") from error


def _plain(value: Any) -> Any:
    """As dictionaries, lists and what JSON has."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not isfinite(value):
        return str(float(value))
    return value if isinstance(value, str | int | float | NoneType) else str(value)


def _typed(value: Any, kind: Any) -> Any:
    """The inverse of ``_plain`` for a value of a known type."""
    origin, members = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        if unknown := value.keys() - hints.keys():
            raise TypeError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
        return kind(**{name: _typed(entry, hints[name]) for name, entry in value.items()})
    if origin in (Union, UnionType):
        if value is None:
            return None
        (kind,) = (member for member in members if member is not NoneType)
        return _typed(value, kind)
    if origin is Literal:
        return value
    if origin is tuple:
        kinds = members[:1] * len(value) if members[-1] is Ellipsis else members
        return tuple(_typed(entry, own) for entry, own in zip(value, kinds, strict=True))
    if origin is dict:
        return {key: _typed(entry, members[1]) for key, entry in value.items()}
    return float(value) if kind is float and isinstance(value, str) else value


def profile_to_csv(profile: Profile) -> str:
    """A line for each row, raw numbers in bytes, seconds and FLOPs; empty where nothing is known.

    Differences are relative to what was measured. The parts of memory, FLOPs and time follow, under
    names that begin with those of ``PART_COLUMNS``.
    """
    lines = [_flat(row, profile) for row in profile.rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    head = [name for name in names if "." not in name]
    parts = [name for kind in PART_COLUMNS for name in names if name.startswith(kind)]
    text = io.StringIO()
    writer = csv.DictWriter(text, head + parts, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(row: Row, profile: Profile) -> dict[str, Any]:
    """One row by the CSV's names."""
    setting, predicted, found = row.setting, row.prediction, row.measurement
    model, training = setting.model, setting.training
    memory, seconds = facts.measured_bytes(row), facts.measured_seconds(row)
    rounds = found.seconds if found and not found.failure else ()
    return {
        "work": setting.work,
        "label": setting.label,
        "pattern": model.pattern,
        "seq_len": model.seq_len,
        "batch_size": training.batch_size,
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_embd": model.n_embd,
        "recompute": model.recompute,
        "head_chunk": model.head_chunk,
        "stored_precision": model.stored_precision,
        "optimiser": training.optimiser,
        "precision": training.precision,
        "device": setting.device,
        "engine_asked": model.engine,
        "engine": found.engine if found else None,
        "decoder": found.decoder if found else None,
        "parameters": predicted.parameters,
        "pairs": predicted.pairs,
        "dense_pairs": predicted.dense_pairs,
        "share_of_dense": facts.share_of_dense(row),
        "useful_tile_share": predicted.useful_tile_share,
        "useful_flops": facts.useful_flops(row),
        "nominal_flops": sum(predicted.nominal_flops.values()),
        "predicted_peak_bytes": predicted.peak_bytes,
        "measured_peak_bytes": memory,
        "peak_bytes_difference": facts.difference(predicted.peak_bytes, memory),
        "baseline_bytes": found.baseline_bytes if found else None,
        "predicted_seconds": predicted.seconds,
        "measured_seconds": seconds,
        "measured_seconds_min": min(rounds, default=None),
        "measured_seconds_max": max(rounds, default=None),
        "rounds": len(rounds),
        "seconds_difference": facts.difference(predicted.seconds, seconds),
        "tokens": facts.tokens_of_work(row),
        "tokens_per_s": facts.tokens_per_second(row),
        "share_of_gemm": facts.share_of_ceiling(row, profile),
        "cache_stored_bytes": predicted.cache_stored_bytes,
        "cache_read_bytes": predicted.cache_read_bytes,
        "cache_allocated_bytes": predicted.cache_allocated_bytes,
        "failure": found.failure if found else None,
        "not_measured": row.not_measured,
        **{f"peak.{name}": value for name, value in predicted.peak_parts.items()},
        **{f"flops.{name}": value for name, value in predicted.useful_flops.items()},
        **{f"time.{name}": value for name, value in (found.parts_s if found else {}).items()},
    }
