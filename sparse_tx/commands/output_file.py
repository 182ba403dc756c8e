"""The file that a command leaves: tried before the work begins, and written whole at its end."""

from pathlib import Path
from tempfile import TemporaryFile

from sparse_tx.errors import UserError
from sparse_tx.files import write_atomically


def check_output(path: Path) -> None:
    """Refuse a file that could not be written: better now than after the work is done.

    Raises:
        UserError: it is no regular file, or its folder cannot be written to.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"the output '{path}' exists and is not a regular file")
    try:
        with TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        raise UserError(f"the output '{path}' cannot be written: {error.strerror}") from error


def write_output(path: Path, data: bytes) -> None:
    """Write a file in one step.

    Raises:
        UserError: it cannot be written; an old one is left as it was.
    """
    try:
        write_atomically(path, data)
    except OSError as error:
        raise UserError(f"the output '{path}' cannot be written: {error.strerror}") from error
