"""Where the checkpoints of a run are, and which of them is the latest or the best.

run/checkpoints/step-00001000/    one checkpoint
run/checkpoints/best.json         {"step": ..., "valid_bpb": ...} of the best one, for other
                                  programs; what decides is the manifests
run/checkpoints/.tmp-*            being written or being removed; never read
run/checkpoints/.replaced-step-*  the old form of a step that is being saved a second time
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Literal

from sparse_tx.checkpoint.manifest import MANIFEST, read_manifest
from sparse_tx.errors import UserError

TEMPORARY = ".tmp-"
REPLACED = ".replaced-"

_STEP_FOLDER = re.compile(rf"(?:{re.escape(REPLACED)})?step-(\d+)")

Which = Literal["latest", "best"]


def checkpoints_folder(run_dir: Path) -> Path:
    """The folder of a run that holds its checkpoints."""
    return run_dir / "checkpoints"


def step_folder(step: int) -> str:
    """The name of the checkpoint of ``step``."""
    return f"step-{step:08d}"


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """The checkpoint folders of a run, earliest step first; empty where there are none."""
    return [path for _, path in sorted(steps_in(checkpoints_folder(Path(run_dir))).items())]


def steps_in(folder: Path) -> dict[int, Path]:
    """Step -> checkpoint, for a ``checkpoints`` folder.

    Saving a step for a second time moves its first form aside for an instant; a process killed in
    that instant leaves only the form under the other name, which then counts.
    """
    found: dict[int, Path] = {}
    # Reverse order: "step-..." comes after ".replaced-step-..." and is met first.
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        match = _STEP_FOLDER.fullmatch(path.name)
        if match and path.is_dir():
            found.setdefault(int(match[1]), path)
    return found


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is one checkpoint, by its name or its manifest, and so no run directory."""
    return bool(_STEP_FOLDER.fullmatch(path.resolve().name)) or (path / MANIFEST).exists()


def best_in(folder: Path) -> tuple[int, float] | None:
    """Step and validation bits per byte of the best checkpoint in a ``checkpoints`` folder.

    The earliest one if several are equal; None if none was evaluated.
    """
    evaluated = []
    for step, path in steps_in(folder).items():
        with suppress(UserError):  # a damaged checkpoint cannot be the best
            manifest = read_manifest(path)
            if manifest.valid_bpb is not None:
                evaluated.append((manifest.valid_bpb, step))
    if not evaluated:
        return None
    valid_bpb, step = min(evaluated)
    return step, valid_bpb


def find_checkpoint(path: str | Path, which: Which = "latest") -> Path:
    """Find one checkpoint folder.

    Args:
        path: a run directory, or a checkpoint folder itself, which is then the answer.
        which: of a run directory, the checkpoint with the most steps, or the one with the lowest
            validation bits per byte.

    Raises:
        UserError: there is no such folder, or no such checkpoint in it yet.
    """
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(
            f"the folder '{path}' {what}; give a run directory or one of its checkpoints"
        )
    if is_checkpoint(path):
        return path
    folder = checkpoints_folder(path)
    found = steps_in(folder)
    if not found:
        raise UserError(
            f"there is no checkpoint in '{path}' yet; give the run directory (--out) of a training"
            " run that has saved one"
        )
    if which == "latest":
        return found[max(found)]
    best = best_in(folder)
    if best is None:
        raise UserError(
            f"no checkpoint in '{path}' has been evaluated, so none is the best; take the latest,"
            f" {found[max(found)].name}"
        )
    return found[best[0]]
