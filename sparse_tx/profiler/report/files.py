"""A profile as files: the page, a picture, and the data for a spreadsheet and for programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparse_tx.errors import UserError
from sparse_tx.files import write_atomically
from sparse_tx.profiler.records import Profile
from sparse_tx.profiler.report.exchange import profile_to_csv, profile_to_json
from sparse_tx.profiler.report.figures import cost_figure
from sparse_tx.profiler.report.page import page

# The data come first: what took hours to measure is on the disk before anything is drawn.
_CONTENTS: dict[str, Callable[[Profile], str | bytes]] = {
    "profile.json": profile_to_json,
    "profile.csv": profile_to_csv,
    "profile.png": cost_figure,
    "profile.html": page,
}


def write_report(profile: Profile, folder: str | Path) -> dict[str, Path]:
    """Write a profile's page, picture and data into a folder, which is made if there is none.

    Each file appears under its name when it is complete; one of an earlier report is replaced.

    Args:
        profile: what is reported.
        folder: where the files go.

    Returns:
        The paths by ending: ``json``, ``csv``, ``png`` and ``html``.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    return write_contents(profile, folder, _CONTENTS)


def write_contents(
    subject: Any, folder: str | Path, contents: dict[str, Callable[[Any], str | bytes]]
) -> dict[str, Path]:
    """Write what is made of ``subject``, by the names of the files and in their order.

    Returns:
        The paths by ending.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    written = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in contents.items():
            content = make(subject)
            path = folder / name
            write_atomically(path, content.encode() if isinstance(content, str) else content)
            written[path.suffix[1:]] = path
    except OSError as error:
        raise UserError(
            f"cannot write the report to '{folder}': {error.strerror or error}; name a folder that"
            " may be written to and has room"
        ) from error
    return written
