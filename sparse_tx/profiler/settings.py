"""A setting at another length, without any, and the engine that it comes to."""

from dataclasses import replace

import torch

from sparse_tx.attention import resolve_engine
from sparse_tx.errors import UserError
from sparse_tx.model.precision import dtype_of
from sparse_tx.profiler.patterns_by_length import at_length
from sparse_tx.profiler.records import Setting


def at(setting: Setting, T: int, batch: int | None = None) -> Setting:
    """The setting at another length, where the sizes of its pattern may be others, or batch size.

    Raises:
        UserError: the pattern or the model cannot have this length.
    """
    model = replace(setting.model, seq_len=T, pattern=at_length(setting.label, T))
    training = setting.training
    if batch is not None:
        training = replace(training, batch_size=batch)
    return replace(setting, model=model, training=training)


def can_be_at(setting: Setting, T: int) -> bool:
    """Whether pattern and model can have a length; sizes that follow it may come to nothing."""
    try:
        at(setting, T)
    except UserError:
        return False
    return True


def engine_of(setting: Setting) -> str:
    """The attention engine that will run.

    Raises:
        UserError: the one that the setting names cannot run.
    """
    model, H = setting.model, setting.model.n_head
    name, _ = resolve_engine(
        model.engine,
        device=torch.device(setting.device),
        dtype=dtype_of(setting.training.precision),
        D=model.qk_width // H,
        D_v=model.n_embd // H,
        heads=tuple(head for layer in model.stack.layers for head in layer.heads(H)),
    )
    return name


def without_length(setting: Setting) -> Setting:
    """What settings have in common that differ in length alone, and in the sizes which follow it.

    The label stays, and tells patterns apart; length and notation are the same for all.
    """
    return replace(setting, model=replace(setting.model, seq_len=1, pattern="dense"))
