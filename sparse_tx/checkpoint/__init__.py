"""Atomic save and load of a run: what is on disk under a checkpoint's name is always whole."""

from sparse_tx.checkpoint.layout import (
    Which,
    find_checkpoint,
    is_checkpoint,
    list_checkpoints,
)
from sparse_tx.checkpoint.load import (
    Checkpoint,
    load_checkpoint,
    read_checkpoint,
    weights_sha256,
)
from sparse_tx.checkpoint.manifest import read_manifest
from sparse_tx.checkpoint.save import remove_checkpoints, save_checkpoint
from sparse_tx.checkpoint.transplant import (
    positions_in_words,
    transplant_config,
    transplant_weights,
    transplanted,
)

__all__ = [
    "Checkpoint",
    "Which",
    "find_checkpoint",
    "is_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "positions_in_words",
    "read_checkpoint",
    "read_manifest",
    "remove_checkpoints",
    "save_checkpoint",
    "transplant_config",
    "transplant_weights",
    "transplanted",
    "weights_sha256",
]
