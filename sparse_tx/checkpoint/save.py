"""Save a checkpoint: everything under a temporary name, onto the disk, and only then renamed."""

import errno
import json
import os
import re
import shutil
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sparse_tx.checkpoint.layout import (
    REPLACED,
    TEMPORARY,
    best_in,
    checkpoints_folder,
    step_folder,
    steps_in,
)
from sparse_tx.checkpoint.manifest import MANIFEST, Manifest, read_manifest
from sparse_tx.config import RunConfig
from sparse_tx.data import Tokenizer
from sparse_tx.errors import UserError
from sparse_tx.files import sync, write_atomically

MODEL, EMA = "model.safetensors", "ema.safetensors"
CONFIG, TOKENIZER, TRAINING_STATE = "config.yaml", "tokenizer.json", "training_state.pt"
BEST = "best.json"


def save_checkpoint(
    run_dir: str | Path,
    *,
    step: int,
    model_state: dict[str, Tensor],
    ema_state: dict[str, Tensor] | None,
    config: RunConfig,
    tokenizer: Tokenizer,
    training_state: dict[str, Any],
    keep_last: int,
    valid_bpb: float | None,
) -> Path:
    """Save the state after ``step`` optimiser steps, then remove checkpoints that are not kept.

    A kill at any instant leaves every earlier checkpoint whole and this one whole or absent. One
    process at a time may save into a run directory.

    Args:
        run_dir: the run directory; made if it does not exist.
        step: optimiser steps taken. A checkpoint of the same step is replaced.
        model_state: the model's ``state_dict``; tensors may share memory and be on any device.
        ema_state: the averaged weights, under all the names of ``model_state``, tied ones too.
        config: the resolved configuration, whose model part builds the model of ``model_state``.
        tokenizer: the tokenizer of the run.
        training_state: what continuing the run needs: dictionaries, lists and tuples of tensors,
            numbers, strings, bytes, booleans and None.
        keep_last: how many of the latest checkpoints stay; the best one stays beside them.
        valid_bpb: validation bits per byte at this step, if it was evaluated. The lowest makes the
            best checkpoint. None keeps the figure of a checkpoint of this step that is replaced.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: it could not be written, for example onto a full disk. Nothing of it is left.
        TypeError: ``training_state`` holds something that could not be read back.
        ValueError: ``ema_state`` has other names than ``model_state``.
    """
    if keep_last < 1:
        raise UserError(f"keep_last is {keep_last}; it must be 1 or more")
    if ema_state is not None and (other := ema_state.keys() ^ model_state.keys()):
        raise ValueError(f"ema_state and model_state do not both have {', '.join(sorted(other))}")
    _require_plain(training_state, "training_state")
    folder = checkpoints_folder(Path(run_dir))
    temporary = folder / f"{TEMPORARY}{step_folder(step)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        temporary.mkdir()
        _write_tensors(temporary / MODEL, model_state)
        if ema_state is not None:
            _write_tensors(temporary / EMA, ema_state)
        _write_training_state(temporary / TRAINING_STATE, training_state)
        text = yaml.safe_dump(config.to_flat(), sort_keys=False, allow_unicode=True)
        (temporary / CONFIG).write_text(text, encoding="utf-8")
        tokenizer.save(temporary)
        if valid_bpb is None or not isfinite(valid_bpb):
            valid_bpb = _known_bpb(folder / step_folder(step))
        manifest = Manifest.of(temporary, step, valid_bpb)
        (temporary / MANIFEST).write_text(manifest.to_json())
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        saved = _put_in_place(temporary, folder / step_folder(step))
    except OSError as error:
        raise UserError(_why_not_saved(error, step, folder)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_old(folder, keep_last)
    _name_best(folder)
    return saved


def remove_checkpoints(run_dir: str | Path) -> None:
    """Remove all that saving has left in a run directory, also half-made; nothing else.

    Raises:
        OSError: there is no right to.
    """
    folder = checkpoints_folder(Path(run_dir))
    for name in ("step-[0-9]*", f"{REPLACED}*", f"{TEMPORARY}*"):
        for path in folder.glob(name):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    (folder / BEST).unlink(missing_ok=True)


def _why_not_saved(error: OSError, step: int, folder: Path) -> str:
    whole = steps_in(folder)
    previous = f"{whole[max(whole)].name} is whole" if whole else "there is no earlier one"
    way_out = {errno.ENOSPC: "; free some space", errno.EDQUOT: "; free some space"}
    return (
        f"the checkpoint of step {step} could not be saved in '{folder}':"
        f" {error.strerror or error}; {previous}{way_out.get(error.errno, '')}"
    )


def _write_tensors(path: Path, state: dict[str, Tensor]) -> None:
    seen, separate = set(), {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses shared memory. Each name of a tied weight gets its copy, so that a
        # file loads strictly, name by name, whether or not the model ties them.
        separate[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    try:
        save_file(separate, path)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def _write_training_state(path: Path, state: dict[str, Any]) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        # torch's zip writer covers the error of the file below it with one of its own.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


def _require_plain(value: Any, where: str) -> None:
    """A defect that only shows when a run is continued would cost the run."""
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(key, f"a key of {where}")
            _require_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    elif type(value) not in (int, float, str, bytes, bool, type(None)) and not isinstance(
        value, Tensor
    ):
        raise TypeError(f"{where} is a {type(value).__name__}, neither a tensor nor a plain value")


def _put_in_place(temporary: Path, final: Path) -> Path:
    replaced = final.with_name(REPLACED + final.name)
    if final.exists():
        final.rename(replaced)  # steps_in finds it there if this process ends before the next line
    temporary.rename(final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def _known_bpb(final: Path) -> float | None:
    """The figure of the checkpoint that is about to be replaced by one of the same step."""
    with suppress(UserError):
        return read_manifest(final).valid_bpb
    return None


def _tidy(folder: Path) -> None:
    """Put right what a killed process left behind."""
    for path in folder.glob(f"{REPLACED}*"):
        original = path.with_name(path.name.removeprefix(REPLACED))
        if original.exists():
            shutil.rmtree(path)
        else:
            path.rename(original)
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _remove_old(folder: Path, keep_last: int) -> None:
    found = steps_in(folder)
    best = best_in(folder)
    for step in sorted(found)[:-keep_last]:
        if best is not None and step == best[0]:
            continue
        # Renamed first: half a checkpoint must not stand under a checkpoint's name. What cannot be
        # removed now is tried again at the next save.
        doomed = folder / f"{TEMPORARY}{found[step].name}"
        try:
            found[step].rename(doomed)
        except OSError:
            continue
        shutil.rmtree(doomed, ignore_errors=True)


def _name_best(folder: Path) -> None:
    best = best_in(folder)
    if best is None:
        return
    content = json.dumps(dict(zip(("step", "valid_bpb"), best, strict=True))) + "\n"
    # The manifests decide which is the best; a full disk may leave this file behind them.
    with suppress(OSError):
        write_atomically(folder / BEST, content.encode())
