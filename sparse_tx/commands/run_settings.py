"""Which settings a training run gets: its preset's, those of files, and flags."""

from argparse import ArgumentError, ArgumentParser, Namespace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile

from sparse_tx.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from sparse_tx.commands.run_folder import check_is_no_checkpoint
from sparse_tx.commands.shell import CommandParser, called_as
from sparse_tx.config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
    pattern_for_images,
    preset_names,
    preset_text,
    settings_for_images,
)
from sparse_tx.data import image_shape_of
from sparse_tx.errors import UserError

DESCRIPTION = """Train a model: by default the preset cpu, on the Python sources of this machine,
for ten minutes; on images, such as --data mnist, the preset mnist. Settings are taken from
defaults, --preset, --config and flags, the later the stronger."""

_PRESET, _PRESET_OF_IMAGES, _OUT = "cpu", "mnist", "out"
# Flags that are no settings of the run.
_OWN_FLAGS = ("preset", "config", "out", "resume", "overwrite", "ignore_memory")


def _parser() -> CommandParser:
    parser = CommandParser(prog=called_as("train_lm.py", "train"), description=DESCRIPTION)
    add = parser.add_argument
    add("--preset", type=str, default=_PRESET, help=f"One of {', '.join(preset_names())}.")
    add("--config", action=ActionConfigFile, help="YAML file of settings, named as the flags.")
    add("--out", type=str, default=_OUT, help="Run directory: metrics, events, checkpoints.")
    add("--resume", action="store_true", help="Continue the run in --out with its settings.")
    add("--overwrite", action="store_true", help="Throw away the run in --out.")
    add("--ignore_memory", action="store_true", help="Begin even if memory is known not to do.")
    for part in (DataConfig, ModelConfig, TrainingConfig):
        parser.add_class_arguments(part)
    return parser


def read_settings(argv: list[str]) -> tuple[RunConfig, Any, Checkpoint | None]:
    """Read the settings by their precedence.

    Returns:
        the settings; the flags that are no settings; and under ``--resume`` the checkpoint, whose
        settings take the preset's place. Without a preset, so do those of the checkpoint that
        ``--init_from`` names.

    Raises:
        UserError: flags that exclude one another; a flag in a file that is no setting; a setting
            that does not exist or is out of its limits; a file, checkpoint or source of images that
            cannot be read.
    """
    given = _scout(argv)
    files, flags = _files_and_flags(argv)
    in_files = _settings_in_files(files)
    init_from = given.init_from or in_files.get("init_from")
    checkpoint = None
    if given.resume:
        if given.preset is not None:
            raise UserError("--resume goes on with the run's own settings; leave --preset out")
        if given.init_from is not None:
            raise UserError(
                "--resume and --init_from exclude each other: go on with the run in --out, or begin"
                " a new one from trained weights?"
            )
        check_is_no_checkpoint(Path(given.out))
        checkpoint = read_checkpoint(find_checkpoint(given.out), with_training_state=True)
        base = checkpoint.config.to_flat()
    elif isinstance(init_from, str) and given.preset is None:
        base = _settings_of_checkpoint(init_from, *_data_wanted(given, in_files))
    else:
        base = _settings_of_preset(given.preset, *_data_wanted(given, in_files))
    # jsonargparse takes files in the order of the command line, so that the base goes first and
    # the user's files, wherever they stand, go before all flags.
    with NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(base, file, sort_keys=False)
        file.flush()
        args = _parser().parse_args(
            [f"--config={file.name}", *(f"--config={path}" for path in files), *flags]
        )
    settings = args.as_dict()
    own = {name: settings.pop(name) for name in _OWN_FLAGS}
    asked = vars(given) | {"preset": given.preset or _PRESET}
    for name in ("preset", "out", "resume", "overwrite", "ignore_memory"):
        if own[name] != asked[name]:  # by a pipe, which was not looked into before
            _refuse_in_files(name)
    return RunConfig.from_flat(settings), own, checkpoint


# --- What flags and files are stronger than -----------------------------------------------------


def _settings_of_preset(
    name: str | None, data: str | None, stated: tuple[int, ...]
) -> dict[str, Any]:
    """The settings of a preset, as the data has them: by default one for text or for images."""
    shape = None if data is None else image_shape_of(data, stated)
    if name is None:
        name = _PRESET if shape is None else _PRESET_OF_IMAGES
    settings = yaml.safe_load(preset_text(name))
    if data is None:
        shape = image_shape_of(settings.get("data", DataConfig.data), stated)
    if shape is None:
        return settings
    if name == _PRESET_OF_IMAGES:
        settings["pattern"] = pattern_for_images(shape)
    return settings | settings_for_images(shape) | {"image_shape": list(shape)}


def _settings_of_checkpoint(path: str, data: str | None, stated: tuple[int, ...]) -> dict[str, Any]:
    """The settings that a checkpoint was trained with, for data that may be other."""
    # The trained grid is kept all the same, and fits a longer text too.
    settings = read_checkpoint(path).config.to_flat() | {"position_shape": []}
    if data is None or data == settings["data"]:
        data, stated = settings["data"], stated or tuple(settings["image_shape"])
    shape = image_shape_of(data, stated)
    if shape is None:
        return settings | {"image_shape": []}
    as_images = {**settings_for_images(shape), "position_shape": [], "image_shape": list(shape)}
    return settings | as_images


def _data_wanted(given: Namespace, in_files: dict[str, Any]) -> tuple[str | None, tuple[int, ...]]:
    """The source that flags or files name, if any does, and the shape of images that they state."""
    found = dict(in_files)
    if given.data is not None:
        found["data"] = given.data
    if given.image_shape is not None:
        found["image_shape"] = given.image_shape.strip("[()]").split(",")
    try:
        stated = tuple(map(int, found.get("image_shape", ())))
        DataConfig(image_shape=stated)
    except (TypeError, ValueError):  # the real parser says so
        stated = ()
    data = found.get("data")
    return (data if isinstance(data, str) else None), stated


def _settings_in_files(files: list[str]) -> dict[str, Any]:
    """What all files set, the later the stronger.

    Of a pipe, which can be read only once, nothing is known here.

    Raises:
        UserError: a file sets what is no setting of a run.
    """
    found: dict[str, Any] = {}
    for file in files:
        found |= _settings_in(Path(file))
    for name in _OWN_FLAGS:
        if name in found:
            _refuse_in_files(name)
    return found


def _refuse_in_files(name: str) -> NoReturn:
    raise UserError(
        f"a file of --config sets '{name}', which is no setting of a run; take it out of the file"
        f" and give --{name}"
    )


def _settings_in(path: Path) -> dict[str, Any]:
    """The settings of a file; none where it cannot be read, which the real parser says."""
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


# --- What is given ------------------------------------------------------------------------------


def _scout(argv: list[str]) -> Namespace:
    """The flags that decide which settings are read first.

    What cannot be read here is left to the real parser, which says so.
    """
    scout = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("preset", "init_from", "data", "image_shape"):
        scout.add_argument(f"--{name}")
    scout.add_argument("--out", default=_OUT)
    for name in ("resume", "overwrite", "ignore_memory"):
        scout.add_argument(f"--{name}", action="store_true")
    try:
        return scout.parse_known_args(argv)[0]
    except ArgumentError:
        return scout.parse_args([])


def _files_and_flags(argv: list[str]) -> tuple[list[str], list[str]]:
    """The files that ``--config`` names, and all other arguments."""
    files, flags, rest = [], [], iter(argv)
    for arg in rest:
        if arg == "--config" or arg.startswith("--config="):
            file = next(rest, "") if arg == "--config" else arg.removeprefix("--config=")
            _check_config_file(Path(file))
            files.append(file)
        else:
            flags.append(arg)
    return files, flags


def _check_config_file(path: Path) -> None:
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(
            f"--config {path} {what}; give a YAML file of settings, such as the config.yaml of a"
            " run, or take settings by their name with --preset"
        )
    if not path.is_file():
        return  # a pipe can be read only once
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--config {path} is not UTF-8 text (byte {error.start:,}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}") from None
