"""In which type matrices are multiplied; weights, norms and losses are float32 in any case."""

import contextlib

import torch

from sparse_tx.errors import UserError

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: str) -> torch.dtype:
    """The type of products and attention under a precision of the configuration.

    Raises:
        UserError: there is no such precision.
    """
    if precision not in _TYPES:
        raise UserError(f"unknown precision '{precision}': it is one of {', '.join(_TYPES)}")
    return _TYPES[precision]


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Compute in ``precision`` on ``device`` for a while."""
    dtype = dtype_of(precision)
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
