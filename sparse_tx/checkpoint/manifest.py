"""The manifest: size and SHA-256 of every file of a checkpoint, so that damage is found."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from sparse_tx.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """One file: its length in bytes and the SHA-256 of its content, in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is: its step, how good it is, and its files by name."""

    step: int
    valid_bpb: float | None
    files: dict[str, Entry]

    @classmethod
    def of(cls, folder: Path, step: int, valid_bpb: float | None) -> "Manifest":
        """Describe the files that are in ``folder`` now."""
        names = sorted(path.name for path in folder.iterdir())
        return cls(step, valid_bpb, {name: _describe(folder / name) for name in names})

    def to_json(self) -> str:
        """The content of ``manifest.json``."""
        files = {name: vars(entry) for name, entry in self.files.items()}
        head = {"format": FORMAT, "step": self.step, "valid_bpb": self.valid_bpb}
        return json.dumps({**head, "files": files}, indent=2) + "\n"

    def problem(self, folder: Path, names: list[str]) -> str | None:
        """Say what is wrong with the checkpoint in ``folder``, or None.

        Every listed file must be there with its length; the content of ``names`` is compared too
        (reading is what takes time, and a sampler has no use for the optimiser's state).
        """
        for name in (*self.files, *names):
            entry, path = self.files.get(name), folder / name
            if entry is None:
                return f"{MANIFEST} does not list {name}"
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size < entry.bytes:
                return f"{name} is truncated: {size} of its {entry.bytes} bytes are there"
            if size > entry.bytes:
                return f"{name} was altered: it has {size} bytes instead of {entry.bytes}"
        for name in names:
            if _describe(folder / name) != self.files[name]:
                return f"{name} was altered after it was saved (its SHA-256 differs)"
        return None


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint folder.

    Raises:
        UserError: it is missing or damaged, or a later version of sparse_tx wrote it.
    """
    try:
        entry = json.loads((folder / MANIFEST).read_bytes())
        version = entry["format"]
        files = {
            name: Entry(int(described["bytes"]), str(described["sha256"]))
            for name, described in entry["files"].items()
        }
        valid_bpb = None if entry["valid_bpb"] is None else float(entry["valid_bpb"])
        manifest = Manifest(int(entry["step"]), valid_bpb, files)
    except FileNotFoundError as error:
        raise UserError(f"{MANIFEST} is missing") from error
    except OSError as error:
        raise UserError(f"{MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{MANIFEST} is damaged") from error
    if version != FORMAT:
        raise UserError(f"it has format {version}, and this version of sparse_tx reads {FORMAT}")
    return manifest


def _describe(path: Path) -> Entry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Entry(file.tell(), digest)
