"""The folder that a command makes a run in, and what it must not be."""

import shutil
from pathlib import Path

import yaml

from sparse_tx.checkpoint import is_checkpoint, list_checkpoints
from sparse_tx.config import RunConfig
from sparse_tx.errors import UserError
from sparse_tx.files import write_atomically


def check_is_no_checkpoint(run_dir: Path) -> None:
    """Refuse to write a run into a checkpoint, which would destroy it."""
    if is_checkpoint(run_dir):
        path = run_dir if run_dir.name else run_dir.resolve()
        where = f", '{path.parent.parent}'" if path.parent.name == "checkpoints" else ""
        raise UserError(f"--out {run_dir} is a checkpoint of a run; give the run's folder{where}")


def check_is_no_file(run_dir: Path) -> None:
    """Refuse a file where a folder is to be."""
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"--out {run_dir} is a file; name a folder")


def holds_run(run_dir: Path) -> bool:
    """Whether there is a run in the folder already."""
    return (run_dir / "config.yaml").exists() or bool(list_checkpoints(run_dir))


def prepare_folder(run_dir: Path, config: RunConfig, *, overwrite: bool = False) -> None:
    """Make the folder of a run and write its ``config.yaml``.

    Of an old run, to be overwritten, what runs write is removed; nothing else is.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        if overwrite and holds_run(run_dir):
            for name in ("checkpoints", "events"):
                if (run_dir / name).exists():
                    shutil.rmtree(run_dir / name)
            for name in ("metrics.jsonl", "config.yaml"):
                (run_dir / name).unlink(missing_ok=True)
        run_dir.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(config.to_flat(), sort_keys=False)
        write_atomically(run_dir / "config.yaml", text.encode())
    except OSError as error:
        raise UserError(
            f"--out {run_dir} cannot be written: {error.strerror or error}; name another folder"
        ) from error
