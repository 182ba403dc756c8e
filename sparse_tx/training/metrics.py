"""What a run writes down while it goes: metrics.jsonl and TensorBoard events."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from sparse_tx.errors import UserError
from sparse_tx.files import write_atomically


def peak_memory_bytes(device: torch.device) -> int:
    """The largest memory this process has held: resident set on CPU, allocated on CUDA.

    0 where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # what getrusage counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class MetricsLog:
    """Appends one JSON object a line to ``metrics.jsonl``, and the same figures as events.

    Raises:
        UserError: from every method but ``close``, when the disk does not take what is written.
    """

    def __init__(self, run_dir: Path, *, from_step: int = 0):
        """Continue the log of a run that goes on after ``from_step``: later lines are dropped.

        Such lines are of steps that a killed run took after its last checkpoint; the resumed run
        takes them again.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._path = run_dir / "metrics.jsonl"
        with self._disk():
            before = self._path.read_bytes() if self._path.exists() else b""
            kept = b"".join(line for line in before.splitlines(True) if _up_to(line, from_step))
            if kept != before:
                write_atomically(self._path, kept)
            self._file = self._path.open("a", buffering=1, encoding="utf-8")
            self._events = SummaryWriter(str(run_dir / "events"), purge_step=from_step + 1)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._path} and the events beside it cannot be written ({error.strerror}); make"
                " room there, and go on from the last checkpoint with --resume"
            ) from error

    def write(self, line: dict[str, Any]) -> None:
        """Record one step's figures; those that are None are left out of the events."""
        with self._disk():
            self._file.write(json.dumps(line) + "\n")
            for name, value in line.items():
                if isinstance(value, int | float) and name != "step":
                    self._events.add_scalar(name, value, line["step"])

    def write_sample(self, step: int, text: str) -> None:
        """Record a sample among the events."""
        with self._disk():
            self._events.add_text("sample", f"```\n{text}\n```", step)

    def close(self) -> None:
        """Close both; what could not be written has been said before."""
        for file in (self._file, self._events):
            with suppress(OSError):
                file.close()


def _up_to(line: bytes, step: int) -> bool:
    """Whether a line of the log is whole and of a step up to this one."""
    if not line.endswith(b"\n"):
        return False  # a kill cut it short
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
