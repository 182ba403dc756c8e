"""Files that are either whole or absent, also after a kill or a power cut."""

import os
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
