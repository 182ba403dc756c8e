"""What a run writes down while it goes: metrics.jsonl and TensorBoard events."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """The largest memory this process has held: resident set on CPU, allocated on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # what getrusage counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class MetricsLog:
    """Appends one JSON object a line to ``metrics.jsonl``, and the same figures as events."""

    def __init__(self, run_dir: Path, *, from_step: int = 0):
        """Continue the log of a run that goes on after ``from_step``: later lines are dropped.

        Such lines are of steps that a killed run took after its last checkpoint; the resumed run
        takes them again.
        """
        from torch.utils.tensorboard import SummaryWriter

        path = run_dir / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines(keepends=True):
                # A kill may have cut the last line short.
                if line.endswith("\n") and json.loads(line)["step"] <= from_step:
                    kept.append(line)
        path.write_text("".join(kept))
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(str(run_dir / "events"), purge_step=from_step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Record one step's figures; those that are None are left out of the events."""
        self._file.write(json.dumps(line) + "\n")
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step":
                self._events.add_scalar(name, value, line["step"])

    def write_sample(self, step: int, text: str) -> None:
        """Record a sample among the events."""
        self._events.add_text("sample", f"```\n{text}\n```", step)

    def close(self) -> None:
        self._file.close()
        self._events.close()
