"""What commands print by: consoles that change no text, for as long as somebody reads."""

import os
import sys

from rich.console import Console


class PlainConsole(Console):
    """Prints what it is given: ``:100:`` in a pattern or a text is no name of an emoji.

    A pipe whose reader has left is a ``BrokenPipeError``, as everywhere else in Python.
    """

    def __init__(self, **settings):
        super().__init__(emoji=False, highlight=False, **settings)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError

    def say(self, text: str) -> None:
        """Print a text as it is, however long its lines; whether it is read is no matter."""
        try:
            self.print(text, markup=False, soft_wrap=True)
        except BrokenPipeError:
            silence_stdout()


def silence_stdout() -> None:
    """Send what is still to be printed nowhere, once whoever read stdout has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
