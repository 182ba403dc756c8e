"""Whoever watches a run, and how the run tells its end."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_tx.evaluation import Score


class Reporter:
    """Whoever shows a run to a person; this one shows nothing, and training itself never prints."""

    def on_step(self, step: int, progress: float, figures: dict[str, Any]) -> None:
        """A step was taken or skipped; ``progress`` is the share of the run that is done."""

    def on_evaluation(self, step: int, result: Score, sample: str) -> None:
        """The model was evaluated, and has written ``sample``."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint is whole on the disk."""

    def on_evaluation_progress(self, done: int, total: int) -> None:
        """``done`` of ``total`` tokens are scored."""


@dataclass(frozen=True)
class Outcome:
    """How training ended: after which step, whether its end was reached, and the last score."""

    step: int
    finished: bool
    result: Score | None
    checkpoint: Path | None
