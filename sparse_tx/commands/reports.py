"""What the commands that report costs share: the console, and the folder for the files."""

from pathlib import Path

from sparse_tx.commands.console import PlainConsole
from sparse_tx.errors import UserError
from sparse_tx.profiler.report import WIDTH_OF_FILES


def report_console() -> PlainConsole:
    """The console of stdout; where that is no terminal it is wide, for whole tables."""
    console = PlainConsole()
    return console if console.is_terminal else PlainConsole(width=WIDTH_OF_FILES)


def report_folder(out: str) -> Path:
    """The folder of the report, made before anything is measured for it.

    Raises:
        UserError: it cannot be made, or is no folder.
    """
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} is no folder ({error.strerror}); name another") from error
    return Path(out)
