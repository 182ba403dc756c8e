"""The files that a source is made of, and a text that changes when one of them does."""

import hashlib
import os
from pathlib import Path

from sparse_tx.data.compression import unreadable


def files_below(folder: Path) -> list[Path]:
    """All regular files in and under ``folder``, sorted by relative path.

    None that is hidden, and none of ``__pycache__``, which Python fills with its own.

    Raises:
        UserError: a folder cannot be read.
    """

    def refuse(error: OSError):
        raise unreadable(folder, error) from None

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [x for x in folders if not x.startswith(".") and x != "__pycache__"]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(filter(Path.is_file, files), key=lambda file: file.relative_to(folder).as_posix())


def fingerprint_of(files: list[Path]) -> str:
    """A digest of where the files are, how large they are and when they were last written."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(os.fsencode(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0"))
    return f"files {digest.hexdigest()}"
