"""Which layer or head of a pattern a mask is of."""

from sparse_tx.errors import UserError
from sparse_tx.patterns import Layer, Pattern
from sparse_tx.patterns.given import PatternLike, as_stack


def one_layer(pattern: PatternLike) -> Layer:
    """The single layer that ``pattern`` describes; one head's pattern counts as a layer of it.

    Raises:
        UserError: it has different layers, or cannot be read.
    """
    stack = as_stack(pattern)
    distinct = set(stack.layers)
    if len(distinct) > 1:
        raise UserError(
            f"'{pattern}' has {len(distinct)} different layers and a mask belongs to one;"
            " pick it with stack.layer(n) or stack.at(layer, head, n_head)"
        )
    return stack.layers[0]


def one_head(pattern: PatternLike) -> Pattern:
    """The single head that ``pattern`` describes: head 0, where all heads have the same notation.

    Raises:
        UserError: its heads or layers have different notations, or it cannot be read.
    """
    if isinstance(pattern, Pattern):
        return pattern
    layer = one_layer(pattern)
    if len(layer.groups) > 1:
        raise UserError(
            f"'{layer}' gives different heads different patterns; say how many heads by n_head=,"
            " or pick one with layer.at(head, n_head)"
        )
    return layer.at(0, 1)
