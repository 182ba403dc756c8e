"""Whether information can travel between the positions through a stack of layers.

A sparse layer moves information only along its own pairs; the paper's factorisations are chosen so
that a few layers together still connect everything (section 4.1: p steps for p sets). In a text
that is every position to every later one; in a map, whose positions have no order, every two.
"""

from dataclasses import dataclass
from functools import reduce
from operator import or_

from sparse_tx.patterns.algebra import Pattern
from sparse_tx.patterns.stacks import Stack

# Sources are followed in batches of this many bits, or of fewer where so many positions that each
# have a batch before a layer, and after it, would take more than a GiB.
_SOURCES_AT_ONCE = 65_536
_BITS = 1 << 33


@dataclass(frozen=True)
class Reachability:
    """What a stack connects: of ``pairs`` (i, j), in a text with j <= i, ``missing`` are not.

    ``examples`` holds the first few missing (query, key) pairs, by key.
    """

    pairs: int
    missing: int
    examples: tuple[tuple[int, int], ...]

    @property
    def complete(self) -> bool:
        return self.missing == 0


def sources_at_once(T: int) -> int:
    """How many positions are followed together through ``T``."""
    return max(1, min(_SOURCES_AT_ONCE, T, _BITS // (2 * max(1, T))))


def reachability(
    stack: Stack,
    T: int,
    *,
    n_layer: int | None = None,
    n_head: int,
    max_examples: int = 8,
    causal: bool = True,
) -> Reachability:
    """Follow every source position through ``n_layer`` layers (default: one round of the stack).

    A position keeps what it has (the residual stream) and adds what any head of the layer reads.
    Takes O(layers * pairs * T / 64) machine words of work: seconds at T of some ten thousands.
    Without the triangle, positions of one class are one reader.

    Args:
        stack: the patterns.
        T: how many positions, in tokens.
        n_layer: depth over which the stack's layers repeat.
        n_head: heads per layer (it decides which summary sub-blocks exist).
        max_examples: how many missing pairs to name.
        causal: whether queries read up to themselves only, and of pairs only those j <= i count.
    """
    depth = len(stack.layers) if n_layer is None else n_layer
    layers = [tuple(dict.fromkeys(stack.layer(n).heads(n_head))) for n in range(depth)]
    missing, examples, at_once = 0, [], sources_at_once(T)
    for first in range(0, T, at_once):
        last = min(T, first + at_once)
        # has[i]: bit j - first is set once what stood at position j has arrived at position i.
        has = [1 << i - first if first <= i < last else 0 for i in range(T)]
        for patterns in layers:
            has = _step(has, patterns) if causal else _step_both_ways(has, patterns)
        for i in range(first if causal else 0, T):
            expected = min(last, i + 1) if causal else last
            absent = (1 << expected - first) - 1 & ~has[i]
            missing += absent.bit_count()
            while absent and len(examples) < max_examples:
                lowest = absent & -absent
                examples.append((i, first + lowest.bit_length() - 1))
                absent ^= lowest
    pairs = T * (T + 1) // 2 if causal else T * T
    return Reachability(pairs, missing, tuple(examples))


def _step(has: list[int], patterns: tuple[Pattern, ...]) -> list[int]:
    """What every position has after one layer, given what it had before."""
    prefix: list[int] = []  # prefix[i]: what all positions up to i have, for sets that begin at 0
    arrived = []
    for i, own in enumerate(has):
        prefix.append(prefix[-1] | own if prefix else own)
        for pattern in patterns:
            for keys in pattern.read_set(i).ranges():
                if keys.start == 0 and keys.step == 1:
                    own |= prefix[keys.stop - 1]
                else:
                    own = reduce(or_, has[keys.start : keys.stop : keys.step], own)
        arrived.append(own)
    return arrived


def _step_both_ways(has: list[int], patterns: tuple[Pattern, ...]) -> list[int]:
    """The same without the triangle: positions of one class get the same."""
    arrived = list(has)
    for part in dict.fromkeys(part for pattern in patterns for part in pattern.parts):
        of_class: dict = {}
        for i in range(len(has)):
            name = part.class_of(i)
            if name not in of_class:
                keys = part.read_set(i, len(has)).ranges()
                read = (source for run in keys for source in has[run.start : run.stop : run.step])
                of_class[name] = reduce(or_, read, 0)
            arrived[i] |= of_class[name]
    return arrived
