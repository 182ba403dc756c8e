"""A comparison of modules for maps as text for other programs: JSON, and CSV with a line a row."""

import csv
import io
import json
from typing import Any

from sparse_tx.profiler.maps import CONVOLUTION, MapProfile, MapRow
from sparse_tx.profiler.report.map_words import map_sentences

FORMAT = "sparse_tx maps 1"
"""Names what a JSON file holds; the number rises when an older reader could not read it."""


def maps_to_json(profile: MapProfile) -> str:
    """All figures, those of the curves too, in MACs, FLOPs and bytes."""
    content = {
        "format": FORMAT,
        "title": profile.title,
        "sentences": map_sentences(profile),
        "rows": [_flat(row, profile) for row in profile.rows],
        "curves": [_figures(row) for row in profile.curves],
        "provenance": profile.provenance,
    }
    return json.dumps(content, indent=1, allow_nan=False)


def maps_to_csv(profile: MapProfile) -> str:
    """A line for every module on every map."""
    lines = [_flat(row, profile) for row in profile.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _figures(row: MapRow) -> dict[str, Any]:
    """One row by the names of columns."""
    height, width = row.shape.sizes
    cost = row.cost
    return {
        "height": height,
        "width": width,
        "channels": row.shape.channels,
        "positions": row.shape.positions,
        "module": row.module,
        "parameters": cost.parameters,
        "weight_macs": cost.weight_macs,
        "pair_macs": cost.pair_macs,
        "macs": cost.macs,
        "flops": cost.flops,
        "attention_map": cost.attention_map,
        "attention_map_bytes": cost.attention_map_bytes,
    }


def _flat(row: MapRow, profile: MapProfile) -> dict[str, Any]:
    share = row.cost.macs / profile.cost(row.shape, CONVOLUTION).macs
    return {**_figures(row), "macs_of_convolution": share}
