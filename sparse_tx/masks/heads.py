"""What a caller may mean by "a pattern": one head's, a layer's, or the text of either."""

from sparse_tx.errors import UserError
from sparse_tx.patterns import Layer, Pattern, Stack, parse_pattern

PatternLike = Pattern | Layer | Stack | str


def one_layer(pattern: PatternLike) -> Layer:
    """The single layer that ``pattern`` describes; one head's pattern counts as a layer of it.

    Raises:
        UserError: it has different layers, or cannot be read.
    """
    if isinstance(pattern, str):
        pattern = parse_pattern(pattern)
    if isinstance(pattern, Pattern):
        return Layer((pattern,))
    if isinstance(pattern, Layer):
        return pattern
    if not isinstance(pattern, Stack):
        raise UserError(
            f"the pattern is {pattern!r}; give a Pattern, a Layer or text such as 'local:128'"
        )
    distinct = set(pattern.layers)
    if len(distinct) > 1:
        raise UserError(
            f"'{pattern}' has {len(distinct)} different layers and a mask belongs to one;"
            " pick it with stack.layer(n) or stack.at(layer, head, n_head)"
        )
    return pattern.layers[0]


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
