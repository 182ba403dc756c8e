"""Where a token stands: learned tables added to the embedding, or rotations of queries and keys."""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor, nn


class PositionTables(nn.Module):
    """The paper's attention embedding: a sum of learned tables, one for each axis of a grid.

    Positions fill the grid in row-major order. Text uses a matrix as wide as the pattern's stride,
    so that one table names the block and one the place within it; images use row, column and
    channel (arXiv:1904.10509, section 5.2). One axis makes an ordinary table of positions.
    """

    def __init__(self, shape: tuple[int, ...], n_embd: int):
        super().__init__()
        self.shape = shape
        self.tables = nn.ParameterList(torch.empty(size, n_embd) for size in shape)

    def rows_of(self, position: int) -> list[int]:
        """The row of each table that a position reads."""
        return [
            position // prod(self.shape[axis + 1 :]) % size for axis, size in enumerate(self.shape)
        ]

    def forward(self, n: int, start: int = 0) -> Tensor:
        """The embedding of n positions from ``start`` on: ``(n, C)``."""
        place = torch.arange(start, start + n, device=self.tables[0].device)
        total = None
        for axis, table in enumerate(self.tables):
            along_axis = place // prod(self.shape[axis + 1 :]) % self.shape[axis]
            rows = table[along_axis]  # (T, C)
            total = rows if total is None else total + rows
        return total


@lru_cache(maxsize=8)
def _turns(T: int, D: int, device: torch.device) -> Tensor:
    """exp(i angle) for each position and pair of numbers: ``(T, 1, D/2)`` complex64.

    Angles are computed in float64: at position 1,000,000 a float32 has no exact turn left.
    """
    # Asked for first in inference, the table must still serve training later.
    with torch.inference_mode(False):
        return _compute_turns(T, D, device)


def _compute_turns(T: int, D: int, device: torch.device) -> Tensor:
    frequency = 10_000.0 ** (-torch.arange(0, D, 2, device=device, dtype=torch.float64) / D)
    angle = torch.outer(torch.arange(T, device=device, dtype=torch.float64), frequency)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)[:, None]


def rotate(x: Tensor, start: int = 0, T: int | None = None) -> Tensor:
    """Rotate queries or keys ``(B, n, H, D)`` by their positions, neighbours of D as pairs.

    Their products then depend on the distance of the positions only. Source: Su et al. 2021
    (arXiv:2104.09864), with base 10,000. As complex numbers this is one product, not seven.

    Args:
        x: of the positions from ``start`` on.
        start: of a piece of a text, where it begins.
        T: tokens of the whole text, all of whose pieces share one table; n when not given.
    """
    half = x.dtype in (torch.float16, torch.bfloat16)  # which have no complex counterpart
    pairs = torch.view_as_complex((x.float() if half else x).unflatten(-1, (-1, 2)))
    n, D = x.shape[1], x.shape[3]
    T = n if T is None else T
    # One table for all lengths up to a power of two: a growing text does not need one a token.
    turns = _turns(1 << (T - 1).bit_length(), D, x.device)[start : start + n]
    return torch.view_as_real(pairs * turns).flatten(-2).to(x)
