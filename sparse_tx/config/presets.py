"""Named settings that ship with the package, as YAML files beside this one."""

from importlib.resources import files
from pathlib import Path

from sparse_tx.errors import UserError, nearest


def preset_names() -> list[str]:
    """The names that ``--preset`` takes."""
    folder = files("sparse_tx.config") / "presets"
    names = (Path(entry.name) for entry in folder.iterdir())
    return sorted(name.stem for name in names if name.suffix == ".yaml")


def preset_text(name: str) -> str:
    """The YAML text of a preset: a flat mapping of settings.

    Raises:
        UserError: there is no such preset.
    """
    names = preset_names()
    if name not in names:
        raise UserError(
            f"unknown preset '{name}': {nearest(name, names)}the presets are {', '.join(names)}"
        )
    return (files("sparse_tx.config") / "presets" / f"{name}.yaml").read_text()
