"""Images side by side in one PNG file."""

import io

import numpy as np

from sparse_tx.data import CHANNELS

# Between images, and where there is none.
GREY = 128
_GAP = 2
# Pixels that an image's longer side is enlarged to, at most, in whole steps.
_AIM = 84


def png_of_grid(cells: np.ndarray) -> bytes:
    """A PNG file of images in rows and columns, small ones enlarged pixel by pixel.

    Args:
        cells: ``(rows, columns, H, W, C)`` uint8.
    """
    from PIL import Image

    rows, columns, H, W, C = cells.shape
    whole = np.full((rows * (H + _GAP) + _GAP, columns * (W + _GAP) + _GAP, C), GREY, np.uint8)
    if C == 4:
        whole[..., 3] = 255
    for row in range(rows):
        for column in range(columns):
            top, left = _GAP + row * (H + _GAP), _GAP + column * (W + _GAP)
            whole[top : top + H, left : left + W] = cells[row, column]
    scale = max(1, _AIM // max(H, W))
    whole = whole.repeat(scale, axis=0).repeat(scale, axis=1)
    mode = {channels: mode for mode, channels in CHANNELS.items()}[C]
    data = io.BytesIO()
    image = Image.frombytes(mode, (whole.shape[1], whole.shape[0]), whole.tobytes())
    image.save(data, format="PNG")
    return data.getvalue()


def in_square(images: np.ndarray, columns_each: int = 1) -> np.ndarray:
    """Images one after another in rows, about as many rows as columns.

    Args:
        images: ``(n, H, W, C)`` uint8.
        columns_each: so many that follow one another stay in one row; divides n.

    Returns:
        ``(rows, columns, H, W, C)``, grey where there is no image.
    """
    groups = images.reshape(-1, columns_each, *images.shape[1:])
    per_row = max(1, round((len(groups) / columns_each) ** 0.5))
    rows = -(-len(groups) // per_row)
    cells = np.full((rows * per_row, *groups.shape[1:]), GREY, np.uint8)
    cells[: len(groups)] = groups
    return cells.reshape(rows, per_row * columns_each, *images.shape[1:])
