"""Where sparse_tx keeps what it can make again."""

import os
from pathlib import Path

from sparse_tx.errors import UserError


def default_cache_dir() -> Path:
    """Where corpora, downloads and the compiled kernel are kept unless the user says otherwise.

    ``$XDG_CACHE_HOME/sparse_tx``, or ``~/.cache/sparse_tx`` (XDG base directory specification).

    Raises:
        UserError: the user has no home directory, and the environment names none.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(home):  # the specification has relative paths ignored
        return Path(home) / "sparse_tx"
    try:
        return Path.home() / ".cache" / "sparse_tx"
    except RuntimeError as error:
        raise UserError(
            "there is no home directory to keep a cache in; name a folder with XDG_CACHE_HOME=..."
        ) from error
