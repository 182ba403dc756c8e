"""Files that are either whole or absent, also after a kill or a power cut."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path, pattern: str, *, after_s: float = 86_400) -> None:
    """Remove folders that killed processes left half-made: those not written to for a day.

    Args:
        folder: where they are; there need be none.
        pattern: of their names, as ``Path.glob`` has it.
        after_s: seconds without a change after which nobody works in a folder any more.
    """
    for abandoned in folder.glob(pattern):
        with suppress(OSError):  # another process may be removing the same
            touched = (path.stat().st_mtime for path in [abandoned, *abandoned.rglob("*")])
            if max(touched) < time.time() - after_s:
                shutil.rmtree(abandoned, ignore_errors=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Give the file ``path`` this content in one step: readers see the old bytes or the new ones.

    The bytes are first written beside the file, under a temporary name that is removed if anything
    goes wrong. A symbolic link is followed.

    Raises:
        OSError: the disk is full, or the folder cannot be written to. The old file is untouched.
    """
    path = path.resolve()
    # Not of the file's name, which may be as long as names can be.
    temporary = path.with_name(f".tmp-{os.getpid()}-{uuid4().hex}")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
