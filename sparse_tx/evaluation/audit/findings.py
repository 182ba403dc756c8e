"""What an audit finds: a fault at one pair of positions, or what was proven instead."""

from dataclasses import dataclass, field
from typing import Literal

from sparse_tx.evaluation.audit.lengths import Lengths
from sparse_tx.masks.cells import counted, numbered


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The first pair of positions at which something does not hold.

    Positions are those of the model's inputs, counted from 0. In a text, 0 is the start symbol's.

    Attributes:
        kind: ``leak``: read, and not allowed; ``gap``: allowed, and not read; ``wrong``: read, and
            not what it should be.
        path: what computed, such as ``engine 'views'``.
        seq_len: how many positions there were.
        query: the position whose result is at fault.
        key: the position that it read, or should have.
        layers: the layers at fault; several where they compute the same, none where it is not in a
            layer or nobody can know.
        head: the head at fault, if it is one.
        what: the rest of the sentence that ``str`` gives.
    """

    kind: Literal["leak", "gap", "wrong"]
    path: str
    seq_len: int
    query: int
    key: int
    layers: tuple[int, ...] = ()
    head: int | None = None
    what: str

    def __str__(self) -> str:
        where = [self.path]
        if self.layers:
            where.append(numbered("layer", list(self.layers)))
        if self.head is not None:
            where.append(f"head {self.head}")
        where.append(counted(self.seq_len, "position"))
        return f"{', '.join(where)}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class HeadsProof:
    """Heads of one pattern that read exactly what it allows, at every length of the audit.

    Attributes:
        layers: the layers that have these heads.
        heads: their numbers in each.
        pattern: in notation.
        seq_len: the longest of the lengths, of which ``allowed`` and ``forbidden`` count the pairs
            of one head: together ``seq_len`` squared.
        engines: by which it was proven; one that is not for float32 is followed by its type.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    pattern: str
    seq_len: int
    allowed: int
    forbidden: int
    engines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModelProof:
    """What holds of all layers together, by one engine.

    Attributes:
        seq_len: tokens of the text, start symbol included.
        flips: tokens that were flipped, one at a time, without a bit changing where none may.
        queries: positions whose logits were differentiated; 0 where the engine has no gradients.
        reached: inputs that those depend on, in pairs of a query and an input.
        unreached: inputs that no layers lead from, whose gradient is exactly 0.
        finds_gaps: whether gradients were in float64, where what is reached cannot round to 0.
    """

    engine: str
    seq_len: int
    flips: int
    queries: int
    reached: int
    unreached: int
    finds_gaps: bool


@dataclass(frozen=True, kw_only=True)
class DecoderProof:
    """A way of decoding whose logits are those of the whole text at once.

    Attributes:
        dtype: of the model's weights.
        seq_len: tokens of the longest text, start symbol included.
        prefixes: lengths of the prompts from which it went on.
        logits: positions whose logits were compared.
        error: the largest difference.
        rounding: what a difference may be, from measured rounding.
    """

    decoder: str
    engine: str
    dtype: str
    seq_len: int
    prefixes: tuple[int, ...]
    logits: int
    error: float
    rounding: float


@dataclass(kw_only=True)
class Audit:
    """What was proven and what does not hold; ``notes`` say what was not looked at, and why."""

    lengths: Lengths
    heads: list[HeadsProof] = field(default_factory=list)
    models: list[ModelProof] = field(default_factory=list)
    decoders: list[DecoderProof] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether no fault was found."""
        return not self.faults
