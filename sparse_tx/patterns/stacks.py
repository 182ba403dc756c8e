"""Patterns put together: groups of heads in a layer, and layers in a whole model."""

from dataclasses import dataclass

from sparse_tx.errors import UserError
from sparse_tx.patterns.algebra import Pattern


def _require_all(kind: type, members: tuple, whole: str, what: str) -> None:
    if not members or not all(isinstance(member, kind) for member in members):
        raise UserError(
            f"{whole} is made of one or more {what}, not of {members!r}; parse_pattern reads"
            " notation"
        )


@dataclass(frozen=True)
class Layer:
    """The patterns of one layer's heads: ``groups`` share the heads out equally, in order."""

    groups: tuple[Pattern, ...]

    def __post_init__(self):
        _require_all(Pattern, self.groups, "a layer", "patterns")

    def at(self, head: int, n_head: int) -> Pattern:
        """The pattern of head number ``head`` of ``n_head``, its summary sub-block resolved.

        Raises:
            UserError: ``n_head`` heads cannot be shared out equally, or there is no such head.
        """
        if n_head < 1 or n_head % len(self.groups):
            raise UserError(
                f"{n_head} heads cannot be split into {len(self.groups)} equal groups"
                f" ('{self}'); use a multiple of {len(self.groups)} heads"
            )
        if not 0 <= head < n_head:
            raise UserError(f"head {head} of {n_head}: heads are numbered 0 to {n_head - 1}")
        return self.groups[head * len(self.groups) // n_head].for_head(head)

    @property
    def map_widths(self) -> frozenset[int]:
        """The widths of maps that the patterns are made for; empty where they name none."""
        return frozenset().union(*(group.map_widths for group in self.groups))

    def check_causal(self) -> None:
        """Raise a ``UserError`` if a pattern has no causal use."""
        for group in self.groups:
            group.check_causal()

    def heads(self, n_head: int) -> tuple[Pattern, ...]:
        """The patterns of all ``n_head`` heads, in order."""
        return tuple(self.at(head, n_head) for head in range(n_head))

    def __str__(self):
        return "/".join(map(str, self.groups))


@dataclass(frozen=True)
class Stack:
    """The patterns of a whole model: ``layers`` repeat over its depth."""

    layers: tuple[Layer, ...]

    def __post_init__(self):
        _require_all(Layer, self.layers, "a stack", "layers")

    @property
    def map_widths(self) -> frozenset[int]:
        """The widths of maps that the patterns are made for; empty where they name none."""
        return frozenset().union(*(layer.map_widths for layer in self.layers))

    def layer(self, layer: int) -> Layer:
        """The patterns of layer number ``layer``, counted from 0 at the input."""
        if layer < 0:
            raise UserError(f"layer {layer}: layers are numbered from 0")
        return self.layers[layer % len(self.layers)]

    def at(self, layer: int, head: int, n_head: int) -> Pattern:
        """The pattern of one head of one layer of a model with ``n_head`` heads."""
        return self.layer(layer).at(head, n_head)

    def __str__(self):
        runs: list[tuple[Layer, int]] = []
        for layer in self.layers:
            if runs and runs[-1][0] == layer:
                runs[-1] = (layer, runs[-1][1] + 1)
            else:
                runs.append((layer, 1))
        return ",".join(f"{layer}*{n}" if n > 1 else str(layer) for layer, n in runs)
