"""Read a checkpoint, after proof that it is what was saved."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from sparse_tx.checkpoint.layout import Which, find_checkpoint, steps_in
from sparse_tx.checkpoint.manifest import Manifest, read_manifest
from sparse_tx.checkpoint.save import CONFIG, EMA, MODEL, TOKENIZER, TRAINING_STATE
from sparse_tx.checkpoint.transplant import transplant_config, transplant_weights
from sparse_tx.config import ModelConfig, RunConfig
from sparse_tx.data import Tokenizer, load_tokenizer
from sparse_tx.errors import UserError
from sparse_tx.model import GPT


@dataclass(frozen=True)
class Checkpoint:
    """Everything a checkpoint holds, on the CPU."""

    path: Path
    """The checkpoint's folder."""
    step: int
    """Optimiser steps taken."""
    config: RunConfig
    """The resolved configuration of the run."""
    tokenizer: Tokenizer
    """The tokenizer of the run."""
    model_state: dict[str, Tensor]
    """The weights that training goes on with."""
    ema_state: dict[str, Tensor] | None
    """The averaged weights, if the run keeps them."""
    training_state: dict[str, Any] | None
    """What continuing the run needs; None unless asked for."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate and to sample: the averaged ones where there are any."""
        return self.model_state if self.ema_state is None else self.ema_state


def read_checkpoint(path: str | Path, *, with_training_state: bool = False) -> Checkpoint:
    """Read a checkpoint and verify it against its manifest.

    Args:
        path: a checkpoint folder, or a run directory, of which the latest is read.
        with_training_state: read the optimiser's and the data's state too, larger than the weights.

    Raises:
        UserError: no checkpoint is there, or a file is missing, truncated or altered; the message
            names the file and another checkpoint of the run if there is one.
    """
    path = find_checkpoint(path)
    manifest = _verify(path, with_training_state)
    return Checkpoint(
        path=path,
        step=manifest.step,
        config=RunConfig.from_flat(yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))),
        tokenizer=load_tokenizer(path),
        model_state=load_file(path / MODEL),
        ema_state=load_file(path / EMA) if EMA in manifest.files else None,
        training_state=(
            torch.load(path / TRAINING_STATE, map_location="cpu", weights_only=True)
            if with_training_state
            else None
        ),
    )


def load_checkpoint(
    path: str | Path,
    *,
    which: Which = "latest",
    device: str | torch.device = "cpu",
    engine: str | None = None,
    pattern: str | None = None,
    seq_len: int | None = None,
) -> tuple[GPT, Tokenizer, RunConfig]:
    """Load a trained model for use: in eval mode, with the averaged weights where there are any.

    Args:
        path: a run directory, or one checkpoint folder.
        which: of a run directory, the ``latest`` checkpoint or the ``best`` by validation.
        device: where the model is put.
        engine: the attention engine, if not the run's own: that may be one for another device.
        pattern: load the weights under this pattern instead of the one they were trained with.
        seq_len: load them into a model of this length; ``checkpoint.transplant`` says how positions
            carry over.

    Returns:
        The model, its tokenizer, and the configuration of the run, under what was given here.

    Raises:
        UserError: no checkpoint is there, it is damaged, or its weights are not those of the model
            that its configuration describes; its attention engine cannot run on the device; a
            pattern that cannot be read, or whose groups the heads do not divide into.
    """
    checkpoint = read_checkpoint(find_checkpoint(path, which))
    if engine is not None:
        checkpoint = _with_model(checkpoint, replace(checkpoint.config.model, engine=engine))
    symbols, rows = checkpoint.tokenizer.vocab_size, checkpoint.config.model.vocab_size
    if symbols != rows:
        raise UserError(
            f"'{checkpoint.path}' has a tokenizer of {symbols} symbols and a model of {rows};"
            " they are not from one run"
        )
    model = GPT(checkpoint.config.model)
    mismatch = _mismatch(model.state_dict(), checkpoint.weights)
    if mismatch:
        raise UserError(
            f"the weights in '{checkpoint.path}' are not those of its configuration: {mismatch}"
        )
    weights, config = checkpoint.weights, checkpoint.config
    if pattern is not None or seq_len is not None:
        wanted = transplant_config(config.model, pattern=pattern, seq_len=seq_len)
        weights = transplant_weights(weights, config.model, wanted)
        model, config = GPT(wanted), replace(config, model=wanted)
    model.load_state_dict(weights)
    model.to(device).eval().engine()  # one that cannot run is an error here, not in the first use
    return model, checkpoint.tokenizer, config


def weights_sha256(path: Path) -> str:
    """The SHA-256, by its manifest, of the file of weights that a checkpoint folder is used by.

    Loading has compared the manifest with the file; here nothing is read again.

    Raises:
        UserError: there is no manifest, or it is damaged.
    """
    files = read_manifest(path).files
    return files[EMA if EMA in files else MODEL].sha256


def _with_model(checkpoint: Checkpoint, model: ModelConfig) -> Checkpoint:
    return replace(checkpoint, config=replace(checkpoint.config, model=model))


def _verify(path: Path, with_training_state: bool) -> Manifest:
    manifest, problem = _examine(path, with_training_state)
    if problem is None:
        return manifest
    way_out = _way_out(path, with_training_state)
    raise UserError(f"the checkpoint '{path}' cannot be used: {problem}; {way_out}")


def _examine(path: Path, with_training_state: bool) -> tuple[Manifest | None, str | None]:
    """The manifest of a checkpoint, and what is wrong with the checkpoint or None."""
    try:
        manifest = read_manifest(path)
    except UserError as error:
        return None, str(error)
    names = [MODEL, CONFIG, TOKENIZER]
    names += [EMA] if EMA in manifest.files else []
    names += [TRAINING_STATE] if with_training_state else []
    return manifest, manifest.problem(path, names)


def _way_out(path: Path, with_training_state: bool) -> str:
    """What to do about a damaged checkpoint; its training state is needed only to resume."""
    damaged = [path]
    for step, other in sorted(steps_in(path.parent).items(), reverse=True):
        if other.resolve() == path.resolve():
            continue
        if _examine(other, with_training_state)[1] is not None:
            damaged.append(other)
        elif with_training_state:
            # The latest is what --resume takes, so that everything later has to go.
            folders = " and ".join(f"'{folder}'" for folder in damaged)
            what = "the damaged folder" if len(damaged) == 1 else "the damaged folders"
            return f"remove {what} {folders}, and --resume goes on from step {step}"
        else:
            return f"use '{other}' of the same run"
    whole = "whole " if len(damaged) > 1 else ""
    anew = "; begin anew with --overwrite" if with_training_state else ""
    return f"the run has no other {whole}checkpoint{anew}"


def _mismatch(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str | None:
    for name in (*expected, *found):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} has no place in the model"
        if found[name].shape != expected[name].shape:
            shapes = [list(state[name].shape) for state in (found, expected)]
            return f"{name} has shape {shapes[0]} instead of {shapes[1]}"
    return None
