"""Pictures as files, which appear under their names only when they are complete."""

import os
from io import BytesIO
from pathlib import Path

from sparse_tx.errors import UserError
from sparse_tx.files import write_atomically


def write_picture(figure, path: str | os.PathLike) -> None:
    """Write a matplotlib figure as PNG.

    Raises:
        UserError: ``path`` cannot be written.
    """
    content = BytesIO()
    figure.savefig(content, format="png")
    try:
        write_atomically(Path(path), content.getvalue())
    except OSError as error:
        raise UserError(
            f"cannot write the picture to '{path}': {error.strerror}; name a file in a folder that"
            " exists and may be written to"
        ) from error
