"""What a model still sees of a text that has outgrown its context.

A model has positions for ``seq_len`` inputs: the start symbol, then the text. When there are more,
the oldest half of the context is dropped, and what is left goes on as a text that begins there,
with the start symbol before it, as a training window does. Every position then means what it meant
in training, whatever the scheme of positions, and the work per token stays bounded. What is dropped
depends on the length of the text alone: a long prompt is continued as if its end had been
generated.
"""

from math import ceil


def first_kept(length: int, seq_len: int) -> int:
    """Index of the first of ``length`` tokens of a text that the context still holds.

    The context loses ``seq_len // 2`` tokens (at least one) whenever it would exceed ``seq_len``
    with the start symbol before it.
    """
    dropped_at_once = max(1, seq_len // 2)
    return max(0, ceil((1 + length - seq_len) / dropped_at_once) * dropped_at_once)
