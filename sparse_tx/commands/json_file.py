"""The file that ``--json`` names: tried before work begins, and written whole at its end."""

import json
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from sparse_tx.errors import UserError
from sparse_tx.files import write_atomically


def check_json_file(name: str) -> None:
    """Refuse a file that could not be written: better now than after the work is done.

    Nothing is left of the trial; folders that are missing are made by ``write_json``.

    Raises:
        UserError: it is a folder or no regular file, or there is no right to write where it is.
    """
    path = Path(name)
    if path.is_dir() or not path.name:
        raise UserError(f"--json '{name}' is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"--json '{name}' exists and is not a regular file; name another")
    nearest = next(folder for folder in path.resolve().parents if folder.exists())
    try:
        with TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise _unwritable(name, error) from error


def write_json(name: str, figures: dict[str, Any]) -> None:
    """Write the figures in one step, and the folders above the file.

    Raises:
        UserError: the file cannot be written; an old one is left as it was.
    """
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(figures, indent=2) + "\n").encode())
    except OSError as error:
        raise _unwritable(name, error) from error


def _unwritable(name: str, error: OSError) -> UserError:
    return UserError(f"--json {name} cannot be written: {error.strerror or error}; name another")
