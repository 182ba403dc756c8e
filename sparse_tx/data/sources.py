"""Where text comes from: a name, a file or folder, or a dataset of the Hugging Face hub."""

import hashlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from sparse_tx.data.compression import PIECE, read_pieces, unreadable
from sparse_tx.data.enwik8 import BASE_URL, fetch_enwik8
from sparse_tx.errors import UserError, nearest

NAMES = ("stdlib", "enwik8")

# Rows of a dataset that are read at once.
_ROWS = 1000


@dataclass(frozen=True)
class Source:
    """A stream of bytes that can be read any number of times.

    Attributes:
        spec: what the user wrote.
        fingerprint: a text that changes when the content does, found without reading the content.
    """

    spec: str
    fingerprint: str
    _read: Callable[[], Iterable[bytes]] = field(repr=False)

    def chunks(self) -> Iterator[bytes]:
        """Yield all bytes in order, in chunks of about 1 MiB; only these are held in memory.

        Raises:
            UserError: there are no bytes, or some cannot be read (see ``open_source``).
        """
        held: list[bytes] = []
        size, empty = 0, True
        for piece in self._read():
            held.append(piece)
            size += len(piece)
            if size >= PIECE:
                yield b"".join(held)
                held, size, empty = [], 0, False
        if size:
            yield b"".join(held)
        elif empty:
            raise UserError(f"the source '{self.spec}' is empty; choose one that holds some text")


def open_source(spec: str, cache_dir: Path, *, enwik8_base_url: str = BASE_URL) -> Source:
    """Find the source that ``spec`` means.

    ``spec`` is one of:

    * ``stdlib``: the Python sources of the running interpreter's standard library, without tests;
    * ``enwik8``: downloaded once into ``cache_dir``;
    * ``hf:NAME`` or ``hf:NAME:CONFIG``: the column ``text`` of a dataset's train split, in which
      every row ends with a newline (one is added where it has none);
    * a file, or a folder of which all files are read in the order of their paths, but for hidden
      ones; each plain or compressed (.gz, .bz2, .xz, .zst, .zip).

    A file that has the name of another source is meant by ``./stdlib``. A file's first chunk is
    read at once, so that an unusable one is refused here rather than later.

    Args:
        spec: the source, as above.
        cache_dir: folder for downloads.
        enwik8_base_url: where ``enwik8.zip`` lies.

    Raises:
        UserError: nothing there, no text in it, no right to read it, damaged, cut short, not the
            compression that its name says, or no way to the network.
    """
    if spec == "stdlib":
        return _open_stdlib()
    if spec.startswith("hf:"):
        return _open_dataset(spec)
    path = fetch_enwik8(cache_dir, base_url=enwik8_base_url) if spec == "enwik8" else Path(spec)
    source = _open_path(spec, path.expanduser())
    next(source.chunks())
    return source


def _open_stdlib() -> Source:
    folder = Path(sysconfig.get_path("stdlib"))

    def read() -> Iterator[bytes]:
        for path in _files_below(folder):
            parts = path.relative_to(folder).parts
            if path.suffix == ".py" and not any(map(_is_left_out_of_stdlib, parts[:-1])):
                yield from read_pieces(path)

    # sys.version has the build as well: distributions patch the library under one version number.
    return Source("stdlib", f"stdlib {sys.implementation.name} {sys.version} {folder}", read)


def _is_left_out_of_stdlib(folder: str) -> bool:
    return folder.endswith("-packages") or folder in ("test", "tests", "idle_test")


def _open_path(spec: str, path: Path) -> Source:
    try:
        mode = path.stat().st_mode if spec.strip() else None
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        raise unreadable(path, error) from None
    if mode is None:
        raise UserError(
            f"there is no source '{spec}': {nearest(spec, NAMES)}give {', '.join(NAMES)},"
            " hf:NAME[:CONFIG], or the path of a file or folder"
        )
    if S_ISREG(mode):
        files = [path]
    elif S_ISDIR(mode):
        files = _files_below(path)
        if not files:
            raise UserError(f"the folder '{spec}' holds no files but hidden ones; choose another")
    else:
        raise UserError(
            f"'{spec}' is neither a file nor a folder; write what it gives into a file first"
        )

    def read() -> Iterator[bytes]:
        for file in files:
            yield from read_pieces(file)

    return Source(spec, _fingerprint(files), read)


def _files_below(folder: Path) -> list[Path]:
    """All regular files in and under ``folder``, sorted by relative path; none that is hidden."""

    def refuse(error: OSError):
        raise unreadable(folder, error) from None

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(filter(Path.is_file, files), key=lambda file: file.relative_to(folder).as_posix())


def _fingerprint(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(os.fsencode(f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\0"))
    return f"files {digest.hexdigest()}"


def _open_dataset(spec: str) -> Source:
    name, _, config = spec.removeprefix("hf:").partition(":")
    if not name:
        raise UserError(f"'{spec}' names no dataset; write hf:NAME or hf:NAME:CONFIG")
    import datasets

    try:
        rows = datasets.load_dataset(name, config or None, split="train")
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the dataset '{spec}' cannot be loaded ({type(error).__name__}: {reason}); check its"
            " name and your network, or give a local file"
        ) from None
    if "text" not in rows.column_names:
        raise UserError(
            f"the dataset '{spec}' has no column 'text', only {', '.join(rows.column_names)};"
            " choose another, or write its text into a file"
        )

    def read() -> Iterator[bytes]:
        for batch in rows.select_columns("text").iter(_ROWS):
            yield "".join(
                text if text.endswith("\n") else text + "\n"
                for text in batch["text"]
                if text is not None
            ).encode()

    return Source(spec, f"{spec} {rows._fingerprint}", read)
