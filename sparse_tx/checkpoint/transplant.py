"""Trained weights in a model of another pattern or another length.

A pattern has no weights of its own, and no other part of the model but its positions depends on the
length: every other weight is taken as it is. Positions carry over like this:

* ``rope`` and ``none`` have no weights, and reach any length; the grid of ``grid+rope`` is that of
  ``grid``;
* ``grid`` keeps the grid that was trained, whatever the stride of the new pattern, and explicitly:
  by itself a grid takes its width from the pattern. Where the text is longer, the first axis is;
* ``table`` keeps its first ``seq_len`` rows, or gets more.

New rows are the mean of the trained ones: a beginning for further training, which favours no
position. (Without any, copies of the last row or of all rows in turn were no better.)
"""

from dataclasses import fields, replace
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError

# What weights do not depend on. All else has to be as it was, also where shapes would not tell:
# another activation or number of heads makes another function of the same weights.
_FREE = {
    "seq_len",
    "pattern",
    "position_shape",
    "init",
    "dropout",
    "recompute",
    "chunk",
    "head_chunk",
    "stored_precision",
    "engine",
}
# The widths that these stand for when they are not given.
_RESOLVED = {"n_qk": "qk_width", "n_ff": "ff_width"}


def transplanted(trained: ModelConfig, wanted: ModelConfig) -> ModelConfig:
    """``wanted``, with the positions that weights of ``trained`` need.

    Args:
        trained: the model that the weights are of.
        wanted: the model to put them into: another pattern or length, dropout or engine. A
            ``position_shape`` is taken at its word; without one the trained grid is.

    Raises:
        UserError: the two differ in a setting that weights depend on; the message names the first.
    """
    for field in fields(ModelConfig):
        if field.name in _FREE:
            continue
        before, now = (_value(config, field.name) for config in (trained, wanted))
        if before != now:
            raise UserError(
                f"{field.name} is {now}, and the weights are of a model whose {field.name} is"
                f" {before}; leave {field.name} as it was: weights can be taken over under another"
                " pattern or seq_len, not into another model"
            )
    if not wanted.has_grid:
        return wanted
    if not wanted.position_shape:
        return replace(wanted, position_shape=_grown(trained.grid, wanted.seq_len))
    if wanted.grid[1:] != trained.grid[1:] or wanted.grid[0] < trained.grid[0]:
        raise UserError(
            f"position_shape is {_by(wanted.grid)}, and the weights are of a grid of"
            f" {_by(trained.grid)}; only its first axis can grow: leave position_shape out to have"
            " it chosen"
        )
    return wanted


def transplant_config(
    trained: ModelConfig, *, pattern: str | None = None, seq_len: int | None = None
) -> ModelConfig:
    """``trained`` under another pattern or length, or both; its trained grid is kept.

    Raises:
        UserError: a pattern that cannot be read, or whose groups the heads do not divide into; a
            length below 1.
    """
    changes: dict[str, Any] = {"position_shape": ()}
    changes |= {"pattern": pattern} if pattern is not None else {}
    changes |= {"seq_len": seq_len} if seq_len is not None else {}
    return transplanted(trained, replace(trained, **changes))


def transplant_weights(
    weights: dict[str, Tensor], trained: ModelConfig, wanted: ModelConfig
) -> dict[str, Tensor]:
    """The weights of ``trained`` for ``wanted``, a configuration that ``transplanted`` made."""
    if not wanted.position_axes:
        return weights
    # The first table is that of the axis which grows; one of positions is the only one there is.
    table, n_rows = weights[_FIRST_TABLE], wanted.position_axes[0]
    new = table.mean(dim=0, keepdim=True).expand(max(0, n_rows - len(table)), -1)
    return weights | {_FIRST_TABLE: torch.cat([table[:n_rows], new])}


_FIRST_TABLE = "positions.tables.0"


def positions_in_words(trained: ModelConfig, wanted: ModelConfig) -> str:
    """How ``transplant_weights`` carries the positions over, for a person."""
    if wanted.position in ("rope", "none"):
        return f"{wanted.position}, without weights of their own: as they were at any length"
    if wanted.has_grid:
        kept = f"the trained grid of {_by(trained.grid)} is kept"
        if wanted.grid == trained.grid:
            return kept
        return (
            f"{kept}, and {wanted.grid[0] - trained.grid[0]:,} rows more begin as the mean of its"
            " rows"
        )
    if wanted.seq_len <= trained.seq_len:
        return f"the first {wanted.seq_len:,} of {trained.seq_len:,} trained ones"
    return (
        f"the {trained.seq_len:,} trained ones, and {wanted.seq_len - trained.seq_len:,} more that"
        " begin as their mean"
    )


def _value(config: ModelConfig, name: str) -> Any:
    return getattr(config, _RESOLVED.get(name, name))


def _grown(grid: tuple[int, ...], seq_len: int) -> tuple[int, ...]:
    """The grid with a first axis that is long enough, and as long as it was at least."""
    return max(grid[0], ceil(seq_len / prod(grid[1:]))), *grid[1:]


def _by(grid: tuple[int, ...]) -> str:
    return "x".join(map(str, grid))
