"""Pictures as files, which appear under their names only when they are complete."""

import os
from pathlib import Path

from sparse_tx.errors import UserError


def write_picture(figure, path: str | os.PathLike) -> None:
    """Write a matplotlib figure as PNG.

    Raises:
        UserError: ``path`` cannot be written.
    """
    path = Path(path)
    unfinished = path.parent / f".{path.name}.{os.getpid()}.partial"
    try:
        figure.savefig(unfinished, format="png")
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise UserError(
            f"cannot write the picture to '{path}': {error.strerror}; name a file in a folder that"
            " exists and may be written to"
        ) from error
