"""The parameters of a model, from its configuration alone."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import prod

from sparse_tx.config import ModelConfig


@dataclass(frozen=True)
class Weights:
    """Parameter tensors of one shape.

    Attributes:
        part: the field of ``Parameters`` that they belong to.
        shape: of each of them.
        copies: how many there are.
        in_block: whether residual blocks hold them.
    """

    part: str
    shape: tuple[int, ...]
    copies: int
    in_block: bool

    @property
    def parameters(self) -> int:
        """The numbers in all of them."""
        return self.copies * prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters by part, biases among them, each over all layers.

    Attributes:
        embeddings: token tables, with a row for the start symbol.
        lookups: the table of n-grams and recall.
        positions: learned tables of positions.
        norms: scales and shifts of all normalisations.
        qkv: the projection to queries, keys and values.
        output: the projection of the heads' outputs.
        feed_forward: its two matrices, three for swiglu.
        head: none where it is the token table.
    """

    embeddings: int
    lookups: int
    positions: int
    norms: int
    qkv: int
    output: int
    feed_forward: int
    head: int

    @property
    def parts(self) -> dict[str, int]:
        """The parts by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def total(self) -> int:
        """All parameters, shared ones once."""
        return sum(self.parts.values())


def count_parameters(config: ModelConfig) -> Parameters:
    """Count the parameters of the model that ``config`` describes, without building it."""
    counts = {field.name: 0 for field in fields(Parameters)}
    for weights in list_weights(config):
        counts[weights.part] += weights.parameters
    return Parameters(**counts)


def list_weights(config: ModelConfig) -> Iterator[Weights]:
    """Yield the model's parameter tensors, equal ones together, roughly in the model's order."""
    C, L = config.n_embd, config.n_layer
    yield Weights("embeddings", (config.vocab_size + 1, C), config.recent_tokens, False)
    if config.lookup_rows:
        yield Weights("lookups", (config.lookup_rows, C), 1, False)
    for size in config.position_axes:
        yield Weights("positions", (size, C), 1, False)
    per_norm = 2 if config.norm == "layernorm" and config.bias else 1
    yield Weights("norms", (C,), 2 * L * per_norm, True)
    gates = 2 if config.activation == "swiglu" else 1
    for part, fan_in, fan_out in (
        ("qkv", C, 2 * config.qk_width + C),
        ("output", C, C),
        ("feed_forward", C, gates * config.ff_width),
        ("feed_forward", config.ff_width, C),
    ):
        yield Weights(part, (fan_out, fan_in), L, True)
        if config.bias:
            yield Weights(part, (fan_out,), L, True)
    yield Weights("norms", (C,), per_norm, False)
    if not config.tie_embeddings:
        yield Weights("head", (config.vocab_size, C), 1, False)
