"""From which size on one way of looking at a map costs more than another.

All compare MACs as ``maps`` counts them, with N positions and C channels. The pairs of a non-local
block at half the width take N^2 C, a k x k convolution that keeps the channels k^2 N C^2, and the
k x k convolution of CBAM's spatial gate 2 k^2 N.
"""

from fractions import Fraction
from math import isqrt

from sparse_tx.accounting.heads import require_count
from sparse_tx.accounting.maps import MapShape


def positions_of_convolution(channels: int, kernel_size: int = 3) -> int:
    """The N at which a non-local block's pairs cost what a convolution does, ``k^2 C``.

    With fewer positions the pairs are cheaper, with more the convolution.
    """
    require_count("channels", channels, "channels")
    require_count("kernel_size", kernel_size, "positions")
    return kernel_size**2 * channels


def numbers_of_spatial_gate(kernel_size: int = 7) -> int:
    """The N C at which CBAM's spatial gate costs what a non-local block's pairs do, ``2 k^2``.

    In a map of more numbers the gate is cheaper, in one of fewer the pairs.
    """
    require_count("kernel_size", kernel_size, "positions")
    return 2 * kernel_size**2


def largest_square_below(positions: int) -> int:
    """The side of the largest square map with fewer positions; 0 where there is none."""
    return isqrt(max(0, positions - 1))


def share_of_rows_and_columns(shape: MapShape) -> Fraction:
    """The pairs of rows and then columns as a share of all pairs, ``(H + W) / (H W)``.

    Raises:
        ValueError: the map has not two axes.
    """
    height, width = shape.sizes
    return Fraction(height + width, height * width)
