"""Figures of single heads, for all heads of a model; the attended pairs are the first of them."""

from collections.abc import Callable
from dataclasses import dataclass

from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError
from sparse_tx.patterns import Pattern


@dataclass(frozen=True)
class PerHead:
    """One whole number for every head of every layer.

    Attributes:
        heads: ``heads[layer][head]``, layers counted from the input.
    """

    heads: tuple[tuple[int, ...], ...]

    @property
    def by_layer(self) -> tuple[int, ...]:
        """The sum over each layer's heads."""
        return tuple(map(sum, self.heads))

    @property
    def total(self) -> int:
        """The sum over the model."""
        return sum(self.by_layer)


def attended_pairs(config: ModelConfig, T: int | None = None) -> PerHead:
    """Count the (query, key) pairs that every head attends to, exactly.

    Args:
        config: the model.
        T: how many positions, in tokens; ``config.seq_len`` when not given.

    Raises:
        UserError: ``T`` is below 1.
    """
    T = positions(config, T)
    return for_each_head(config, lambda pattern: pattern.count_pairs(T))


def keys_of_last(config: ModelConfig, T: int | None = None) -> PerHead:
    """Count the keys that the query of the last of ``T`` tokens reads in every head.

    Args:
        config: the model.
        T: tokens, that one included; ``config.seq_len`` when not given.

    Raises:
        UserError: ``T`` is below 1.
    """
    T = positions(config, T)
    return for_each_head(config, lambda pattern: len(pattern.read_set(T - 1)))


def for_each_head(config: ModelConfig, figure: Callable[[Pattern], int]) -> PerHead:
    """``figure`` of every head's pattern, computed once for each distinct pattern."""
    stack, known = config.stack, {}
    rows = []
    for number in range(config.n_layer):
        patterns = stack.layer(number).heads(config.n_head)
        known |= {pattern: figure(pattern) for pattern in set(patterns) if pattern not in known}
        rows.append(tuple(known[pattern] for pattern in patterns))
    return PerHead(tuple(rows))


def positions(config: ModelConfig, T: int | None) -> int:
    """``T``, or the model's context where that is None.

    Counts do not depend on position tables, so that ``T`` may be beyond ``config.seq_len``.

    Raises:
        UserError: ``T`` is below 1.
    """
    T = config.seq_len if T is None else T
    require_count("T", T, "positions")
    return T


def require_count(name: str, value: int, unit: str | None = None) -> None:
    """Refuse what is no number of things.

    Args:
        name: what the value is called.
        value: to be looked at.
        unit: what is counted, for the message.

    Raises:
        UserError: ``value`` is no integer, or below 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        of_what = f" of {unit}" if unit else ""
        raise UserError(f"{name} is {value!r}; it must be a whole number{of_what}, 1 or more")
