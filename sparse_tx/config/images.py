"""What follows from images as data: each is one sequence, from its first byte to its last."""

from math import prod
from typing import Any


def settings_for_images(shape: tuple[int, ...]) -> dict[str, Any]:
    """The settings that the shape of images decides, whatever the recipe.

    A sequence is an image. Learned positions, where there are any, are those of rows, columns and
    channels (arXiv:1904.10509, section 5.2): each of the byte that comes next. Samples are not
    printed, as text they mean nothing.

    Args:
        shape: H, W, C.
    """
    axes = shape if shape[-1] > 1 else shape[:-1]  # one channel has no place to name
    return {"seq_len": prod(shape), "position_shape": list(axes), "sample_length": 0}


def pattern_for_images(shape: tuple[int, ...]) -> str:
    """The last two rows, and the column above: ``local`` and ``strided`` as wide as a row.

    Args:
        shape: H, W, C; a row has W C bytes.
    """
    row = shape[1] * shape[2]
    return f"local:{2 * row},strided:{row}"
