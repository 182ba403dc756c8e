"""How far the scoring of a text is, for a person who waits."""

from time import perf_counter

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sparse_tx.profiler.report.words import seconds_text

# Without a terminal, a line of progress is printed this often.
_SECONDS_BETWEEN_LINES = 15


class ScoringDisplay:
    """How far scoring is and how long it will take, on stderr."""

    def __init__(self, console: Console):
        self.console = console
        self.progress = Progress(
            TextColumn("[bold]scoring"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("scoring", total=None)
        self.passes = self.first_done = 0
        self.first_at = self.last_line = perf_counter()

    def __enter__(self) -> "ScoringDisplay":
        self.progress.start()
        return self

    def __exit__(self, *exception) -> None:
        self.progress.stop()

    def on_progress(self, done: int, total: int) -> None:
        """Take notice of a pass: tokens that went through the model, and those that will."""
        self.progress.update(self.task, completed=done, total=total)
        now = perf_counter()
        self.passes += 1
        if self.passes == 1:
            # It also prepares what later ones find ready, and tells nothing of their time.
            self.first_at, self.first_done = now, done
            return
        left = (now - self.first_at) / (done - self.first_done) * (total - done)
        if self.passes == 2 and done < total:
            self._note(f"time       about {seconds_text(left)}, by the second pass")
            self.last_line = now
        elif not self.console.is_terminal and now - self.last_line > _SECONDS_BETWEEN_LINES:
            self._note(f"{done / total:6.1%}     about {seconds_text(left)} left")
            self.last_line = now

    def _note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
