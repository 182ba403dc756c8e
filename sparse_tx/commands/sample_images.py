"""Sampling from a model of images: a picture of new ones, or of halves that it completes."""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from torch import nn

from sparse_tx.commands.output_file import write_output
from sparse_tx.commands.picture_grid import GREY, in_square, png_of_grid
from sparse_tx.commands.preparing import read_with_status, with_usable_cache
from sparse_tx.commands.sampling_meter import Meter, whole_texts
from sparse_tx.commands.shell import note
from sparse_tx.config import DataConfig
from sparse_tx.data import ByteTokenizer, Tokenizer, open_source, shape_in_words
from sparse_tx.data.corpus import SPLITS
from sparse_tx.errors import UserError
from sparse_tx.folders import default_cache_dir
from sparse_tx.generation import TextRequest, generate_texts

_PICTURE = ".png"


def is_picture(out: str | None) -> bool:
    """Whether a file is to be a picture, by its name."""
    return out is not None and Path(out).suffix.lower() == _PICTURE


def check_flags_of_images(args: Any, as_picture: bool) -> None:
    """Refuse flags that a picture has no use for, and ``--complete`` without one.

    Raises:
        UserError: there are such flags.
    """
    if args.complete is not None and not as_picture:
        raise UserError(
            f"--complete writes a picture; name it with --out FILE{_PICTURE}, without --jsonl and"
            " --prompts"
        )
    for name in ("prompt", "prompt_file", "length", "stop"):
        if as_picture and args[name] is not None:
            raise UserError(
                f"--{name} is for texts, and --out {args.out} is a picture of whole images; leave"
                f" --{name} out (--complete gives the upper half of images)"
            )


def check_run_of_images(path: Path, data: DataConfig, out: str | None, *, as_lines: bool) -> None:
    """Refuse a picture of a model of text, and texts of a model of images but for JSON Lines.

    Args:
        path: the checkpoint.
        data: of its run.
        out: the file to write, if one is given.
        as_lines: whether JSON Lines are written.

    Raises:
        UserError: the model makes something else than is asked for.
    """
    if as_lines:
        return
    if data.image_shape and not is_picture(out):
        raise UserError(
            f"'{path}' is a model of images of {shape_in_words(data.image_shape)}; name a picture"
            f" to write them to, --out FILE{_PICTURE}, or take their bytes by --jsonl"
        )
    if is_picture(out) and not data.image_shape:
        raise UserError(
            f"--out {out} is to be a picture, and '{path}' is a model of text; name another file"
        )


@dataclass(frozen=True)
class ImageMaker:
    """Makes images by a model of a run, and writes pictures of them.

    Attributes:
        model: of the run.
        tokenizer: its tokenizer, of bytes.
        data: its data; ``image_shape`` is H, W, C of an image.
        common: settings of the sampler, and the seed of the first image; image n has that + n.
        origin: what makes them, which is said when the making begins.
    """

    model: nn.Module
    tokenizer: Tokenizer
    data: DataConfig
    common: TextRequest
    origin: str

    def write(self, path: Path, count: int, source: str | None = None) -> None:
        """Write a PNG picture of ``count`` images, or of as many completed ones.

        Args:
            path: of the picture.
            count: how many images to make.
            source: of images whose upper half is given; of each, the half, what the model makes and
                the whole stand side by side. valid, test or train is that split of the run's data;
                else an image file, a folder of them, or an array. Where it has fewer than
                ``count``, they come again, with another seed.

        Raises:
            UserError: there are no such images, or they are of another shape than the model's; the
                picture cannot be written.
        """
        if source is None:
            cells, what = in_square(self.images([b""] * count)), f"{count:,} images"
        else:
            cells = in_square(self._completions(count, source), columns_each=3)
            what = f"{count:,} times a given half, its completion and the original"
        write_output(path, png_of_grid(cells))
        note(f"wrote {path}: {what}, of {shape_in_words(self.data.image_shape)}")

    def images(self, beginnings: list[bytes]) -> np.ndarray:
        """Images that go on after these first bytes of theirs: ``(n, H, W, C)`` uint8."""
        size = prod(self.data.image_shape)
        requests = [
            replace(
                self.common,
                prompt=self.tokenizer.encode(beginning).astype("int64"),
                length=size - len(beginning),
                seed=self.common.seed + n,
            )
            for n, beginning in enumerate(beginnings)
        ]
        note(self.origin)
        with Meter(requests) as meter:
            pieces = meter.watch(generate_texts(self.model, self.tokenizer, requests), requests)
            ends = whole_texts(pieces, len(requests))
        note(meter.summary())
        made = b"".join(part for pair in zip(beginnings, ends, strict=True) for part in pair)
        return np.frombuffer(made, np.uint8).reshape(-1, *self.data.image_shape)

    def _completions(self, count: int, source: str) -> np.ndarray:
        """Half, completion and original of one image after another: ``(3 n, H, W, C)``."""
        found = self._split(source) if source in SPLITS else self._images_of(source, count)
        whole = found[np.arange(count) % len(found)]
        given = whole.shape[1] // 2  # rows
        half = whole.copy()
        half[:, given:] = GREY
        made = self.images([image[:given].tobytes() for image in whole])
        return np.stack([half, made, whole], axis=1).reshape(-1, *self.data.image_shape)

    def _split(self, name: str) -> np.ndarray:
        """The images of a split of the run's data."""
        data = with_usable_cache(self.data)
        corpus = read_with_status(Console(stderr=True), data, ByteTokenizer())
        if corpus.n_images(name) == 0:
            raise UserError(
                f"the {name} split of '{self.data.data}' is empty; name another with --complete, or"
                " an image file"
            )
        return np.asarray(getattr(corpus, name)).reshape(-1, *self.data.image_shape)

    def _images_of(self, spec: str, most: int) -> np.ndarray:
        """Up to so many images of a source, which are to be of the model's shape."""
        shape, held = self.data.image_shape, b""
        size = prod(shape)
        source = open_source(spec, default_cache_dir(), image_shape=shape)
        for chunk in source.chunks():
            held += chunk
            if len(held) >= most * size:
                break
        count = min(most, len(held) // size)
        if count == 0:
            raise UserError(
                f"'{spec}' holds {len(held):,} bytes, less than an image of"
                f" {shape_in_words(shape)}; give an image file, or valid or test"
            )
        return np.frombuffer(held[: count * size], np.uint8).reshape(count, *shape)
