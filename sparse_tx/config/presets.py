"""Named settings that ship with the package, as YAML files beside this one."""

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from sparse_tx.errors import UserError


def preset_names() -> list[str]:
    """The names that ``--preset`` takes."""
    folder = files("sparse_tx.config") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir())


def preset_text(name: str) -> str:
    """The YAML text of a preset: a flat mapping of settings.

    Raises:
        UserError: there is no such preset.
    """
    names = preset_names()
    if name not in names:
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"unknown preset '{name}': {hint}the presets are {', '.join(names)}")
    return (files("sparse_tx.config") / "presets" / f"{name}.yaml").read_text()
