"""Read a plain or compressed file piece by piece; the end of its name says which it is."""

import bz2
import gzip
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sparse_tx.errors import UserError

# How much is asked of a file at once, in bytes.
PIECE = 1 << 20

# Compressed bytes fed to zstandard at once; its output for them comes in one piece, and text
# expands about fourfold.
_ZSTD_FEED = 1 << 15


class Damaged(Exception):
    """A reader found that its file cannot be decompressed to the end."""


def read_pieces(path: Path) -> Iterator[bytes]:
    """Yield the uncompressed bytes of ``path`` in order, in pieces of about 1 MiB.

    A ``.zip`` gives all its members one after another, sorted by name.

    Raises:
        UserError: the file cannot be read, is not what its name says, is damaged or cut short.
    """
    form = _FORMATS.get(path.suffix.lower(), _PLAIN)
    done = 0
    try:
        with open(path, "rb") as file:
            # A file without bytes is an empty text, though it is no valid compressed file.
            empty = not os.fstat(file.fileno()).st_size
            for piece in () if empty else form.read(file):
                done += len(piece)
                yield piece
    except EOFError:
        raise UserError(
            f"'{path}' stops in the middle of its {form.name} data, after {done:,} bytes of text;"
            " it was not copied completely: fetch it again"
        ) from None
    except (Damaged, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise _not_readable_as(form, path, error, done) from None
    except OSError as error:
        if error.errno is None:  # how gzip and bz2 say that the data is not theirs
            raise _not_readable_as(form, path, error, done) from None
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> UserError:
    """What to tell a user whose file or folder the operating system refuses to read."""
    way_out = (
        "give yourself the right to read it" if isinstance(error, PermissionError) else "check it"
    )
    return UserError(
        f"'{error.filename or path}' cannot be read ({error.strerror}); {way_out} or choose another"
    )


class _Format(NamedTuple):
    name: str
    magic: bytes  # what every file of this format begins with
    read: Callable[[BinaryIO], Iterator[bytes]]


def _not_readable_as(form: _Format, path: Path, error: Exception, done: int) -> UserError:
    with open(path, "rb") as file:
        is_form = file.read(len(form.magic)) == form.magic
    if is_form:
        return UserError(
            f"the {form.name} file '{path}' is damaged or incomplete after {done:,} bytes of text"
            f" ({error}); fetch it again"
        )
    return UserError(
        f"'{path}' is not a {form.name} file although its name ends in '{path.suffix}'; rename it"
        " after what it is, or fetch it again"
    )


def _until_empty(file) -> Iterator[bytes]:
    while piece := file.read(PIECE):
        yield piece


def _read_gzip(file):
    return _until_empty(gzip.open(file))


def _read_bz2(file):
    return _until_empty(bz2.open(file))


def _read_xz(file):
    return _until_empty(lzma.open(file))


def _read_zstd(file):
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # as `zstd --long=31` writes
    frame, rest = None, b""
    try:
        # Its ready-made reader takes a file that was cut short for a complete one; a frame tells.
        while feed := rest or file.read(_ZSTD_FEED):
            frame = frame or decompressor.decompressobj()
            if piece := frame.decompress(feed):
                yield piece
            rest = b""
            if frame.eof:
                frame, rest = None, frame.unused_data
    except zstandard.ZstdError as error:
        raise Damaged(error) from None
    if frame is not None:
        raise EOFError


def _read_zip(file):
    try:
        with zipfile.ZipFile(file) as archive:
            for name in sorted(info.filename for info in archive.infolist() if not info.is_dir()):
                with archive.open(name) as member:
                    yield from _until_empty(member)
    except (NotImplementedError, RuntimeError) as error:  # unknown method, or encrypted
        raise Damaged(error) from None


_PLAIN = _Format("plain", b"", _until_empty)
_FORMATS = {
    ".gz": _Format("gzip", b"\x1f\x8b", _read_gzip),
    ".bz2": _Format("bzip2", b"BZh", _read_bz2),
    ".xz": _Format("xz", b"\xfd7zXZ\x00", _read_xz),
    ".zst": _Format("zstandard", b"\x28\xb5\x2f\xfd", _read_zstd),
    ".zip": _Format("zip", b"PK", _read_zip),
}
