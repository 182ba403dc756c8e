"""Where sparse_tx keeps what it can make again."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Where corpora, downloads and the compiled kernel are kept unless the user says otherwise.

    ``$XDG_CACHE_HOME/sparse_tx``, or ``~/.cache/sparse_tx`` (XDG base directory specification).
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "sparse_tx"
