"""Results as files, each with its provenance."""

import json
from pathlib import Path

from sparse_tx.profiler.provenance import provenance


def write_result(path: str | None, result: dict, *packages: str) -> None:
    """Write a result as JSON, under a temporary name first.

    Its provenance names the versions of what was run against: ``packages``.
    """
    if path is None:
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    whole = {"provenance": provenance(*packages)} | result
    temporary.write_text(json.dumps(whole, indent=1) + "\n")
    temporary.replace(target)
    print(f"written to {path}")
