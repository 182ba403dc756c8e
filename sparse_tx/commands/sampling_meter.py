"""What a person sees while texts are made: how far they are, and how fast they come."""

from collections.abc import Sequence
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sparse_tx.commands.json_lines import Pieces
from sparse_tx.commands.shell import note
from sparse_tx.generation import TextRequest


class Meter:
    """Counts what is generated: a bar on the terminal's stderr, and the speed at the end."""

    def __init__(self, requests: Sequence[TextRequest], *, hidden: bool = False):
        console = Console(stderr=True)
        self._shown = console.is_terminal and not hidden
        self._tokens = self._stopped = self._ended = 0
        self._first_s = self._until = None
        self._began = perf_counter()
        # Not redirected: what the command itself writes to stdout goes there, whatever that is.
        self._bar = Progress(
            TextColumn("sampling"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not self._shown,
        )
        self._texts = len(requests)
        if self._shown:
            total = sum(request.length for request in requests)
            self._task = self._bar.add_task("sampling", total=total, figures="")

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *exception):
        self._bar.stop()
        self._until = perf_counter()

    def watch(self, pieces: Pieces, requests: Sequence[TextRequest]) -> Pieces:
        """Count and pass on ``pieces``, which are of ``requests``."""
        made = [0] * len(requests)
        for n, piece in pieces:
            self._tokens += 1
            made[n] += 1
            if self._first_s is None:
                self._first_s = perf_counter() - self._began
            advance = 1
            if piece.finish_reason is not None:
                self._ended += 1
            if piece.finish_reason == "stop":
                self._stopped += 1
                advance = 1 + (requests[n].length or made[n]) - made[n]
            if self._shown:
                figures = f"{self._ended:,} of {self._texts:,} texts  {self._speed()}"
                self._bar.update(self._task, advance=advance, figures=figures)
            yield n, piece

    def summary(self) -> str:
        """How many tokens were generated, how fast, and why texts ended."""
        text = f"{self._tokens:,} tokens, {self._speed()}"
        if self._first_s is not None:
            text += f" (the first after {self._first_s:.2f} s)"
        if self._stopped:
            which = "" if self._texts == 1 else f"{self._stopped:,} of {self._texts:,} texts "
            text += f"; {which}ended at a stop string"
        return text

    def _speed(self) -> str:
        seconds = (self._until or perf_counter()) - self._began
        return f"{self._tokens / seconds:,.1f} tokens/s"


def note_length(requests: Sequence[TextRequest], seq_len: int) -> None:
    """Say that a text outgrows the context, if one may."""
    if any(request.length is None for request in requests):
        note(
            f"the text has no limit; the context is {seq_len:,} tokens, whose oldest half is"
            " dropped when it is full"
        )
        return
    longest = max(len(request.prompt) + request.length for request in requests)
    if longest > seq_len:  # beside the start symbol, all tokens are read but the last
        note(
            f"prompt and continuation have {longest:,} tokens, more than the context of"
            f" {seq_len:,}; its oldest half is dropped when it is full"
        )


def whole_texts(pieces: Pieces, count: int) -> list[bytes]:
    """The bytes of ``count`` texts, once all of them are made."""
    made = [bytearray() for _ in range(count)]
    for n, piece in pieces:
        made[n] += piece.data
    return list(map(bytes, made))
