"""The folder that a command makes a run in, and what it must not be."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from sparse_tx.checkpoint import is_checkpoint, list_checkpoints, remove_checkpoints
from sparse_tx.config import RunConfig
from sparse_tx.errors import UserError
from sparse_tx.files import write_atomically

try:
    import fcntl
except ImportError:  # of Unix
    fcntl = None


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


def check_is_nobody_elses(run_dir: Path) -> None:
    """Refuse a folder whose ``config.yaml`` is another program's: a run writes one of its own."""
    if (run_dir / "config.yaml").exists() and not holds_run(run_dir):
        raise UserError(
            f"--out {run_dir} has a config.yaml that is not of a run; name another folder"
        )


def holds_run(run_dir: Path) -> bool:
    """Whether there is a run in the folder already: a checkpoint, or a run's ``config.yaml``."""
    return bool(list_checkpoints(run_dir)) or _is_of_run(run_dir / "config.yaml")


def _is_of_run(path: Path) -> bool:
    try:
        found = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError):
        return False
    return isinstance(found, dict) and {"pattern", "seq_len", "n_layer", "optimiser"} <= set(found)


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Keep other processes from training in a folder, which is made if need be.

    Where the system has no such locks, nobody is kept from anything.

    Raises:
        UserError: another process trains there, or the folder cannot be written.
    """
    path = run_dir / ".lock"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise _unwritable(run_dir, error) from error
    with file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {run_dir}; wait for its end, or name another"
                " folder with --out"
            ) from None
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def prepare_folder(run_dir: Path, config: RunConfig, *, overwrite: bool = False) -> None:
    """Make the folder of a run and write its ``config.yaml``.

    Of an old run, to be overwritten, what runs write is removed; nothing else is, and folders go
    that are empty then.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        if overwrite and holds_run(run_dir):
            _remove_run(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(config.to_flat(), sort_keys=False)
        write_atomically(run_dir / "config.yaml", text.encode())
    except OSError as error:
        raise _unwritable(run_dir, error) from error


def _remove_run(run_dir: Path) -> None:
    remove_checkpoints(run_dir)
    for path in (run_dir / "events").glob("events.out.tfevents.*"):
        path.unlink()
    for name in ("metrics.jsonl", "config.yaml"):
        (run_dir / name).unlink(missing_ok=True)
    for name in ("checkpoints", "events"):
        with suppress(OSError):  # there is none, or there is something else in it
            (run_dir / name).rmdir()


def _unwritable(run_dir: Path, error: OSError) -> UserError:
    return UserError(
        f"--out {run_dir} cannot be written: {error.strerror or error}; name another folder"
    )
