"""The patterns: for each query position, which earlier key positions it may read.

Source: Child et al. 2019 (arXiv:1904.10509), section 4. The paper factors dense causal attention
into two cheaper sets whose composition still connects every pair of positions:

* *strided* (4.2): a local window, and every l-th earlier position;
* *fixed* (4.3): the query's own aligned block, and a few summary columns of every block.

Each set is a class here. ``Union`` merges sets within one head, ``Layer`` gives groups of heads
different patterns, ``Stack`` gives successive layers different ones. Everything is an immutable
value without tensors; masks, kernels, cache policy, costs and pictures are derived from it.
"""

from dataclasses import dataclass, fields, replace

from sparse_tx.errors import UserError
from sparse_tx.patterns.counting import Conditions, count_union
from sparse_tx.patterns.keyset import Comb, KeySet

# Sizes are multiplied by positions and strides in 64 bits.
LARGEST = 2**31


class Pattern:
    """Who may look at whom within one head. Positions count from 0; no query reads a later key."""

    def allows(self, q, k):
        """Say whether query ``q`` may read key ``k``.

        Written with operators only, so that Python ints, NumPy arrays, torch tensors (broadcast
        against each other) and FlexAttention's ``mask_mod`` share this one definition.
        """
        raise NotImplementedError

    @property
    def conditions(self) -> tuple[Conditions, ...]:
        """What a pair has to meet one of: conditions of every set of the pattern."""
        raise NotImplementedError

    def combs_of_queries(self, queries: range) -> tuple[Comb, ...]:
        """The keys that at least one of ``queries``, not empty and of step 1, reads, as combs."""
        raise NotImplementedError

    def combs(self, i: int) -> tuple[Comb, ...]:
        """The keys that query ``i`` reads, as combs (see ``read_set``)."""
        return self.combs_of_queries(range(i, i + 1))

    def retained_combs(self, now: int) -> tuple[Comb, ...]:
        """The keys to keep after step ``now``, as combs (see ``retained``)."""
        raise NotImplementedError

    def count_pairs(self, T: int) -> int:
        """Count the allowed (query, key) pairs among ``T`` positions, exactly.

        Without a visit to every query; ``Conditions.count_pairs`` says what it takes.
        """
        return count_union(self.conditions, T)

    def read_set(self, i: int) -> KeySet:
        """The keys that query ``i`` reads."""
        return KeySet(*self.combs(i))

    def retained(self, now: int) -> KeySet:
        """The keys up to and including ``now`` that some query after ``now`` will read.

        What a cache must hold between the steps ``now`` and ``now + 1``. It is not what a step
        reads: a strided head reads one key in ``stride``, yet every key has a later reader.
        """
        return KeySet(*self.retained_combs(now))

    def for_head(self, head: int) -> "Pattern":
        """This pattern as head number ``head`` uses it."""
        return self

    @property
    def parts(self) -> tuple["Pattern", ...]:
        """The sets whose union this pattern is: itself alone, unless it is a union."""
        return (self,)

    def __str__(self) -> str:
        return ":".join([self.word, *(str(getattr(self, f.name)) for f in fields(self))])

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(
                    f"the {name} of a '{self.word}' pattern is {value!r}; it must be a whole number"
                    " of tokens, 1 or more"
                )
            if value > LARGEST:
                raise UserError(
                    f"the {name} of a '{self.word}' pattern is {value}; it can be {LARGEST} at"
                    " most, which is longer than any sequence"
                )


@dataclass(frozen=True)
class Dense(Pattern):
    """Every key up to the query: ordinary causal attention."""

    word = "dense"

    def allows(self, q, k):
        return k <= q

    @property
    def conditions(self):
        return (Conditions(),)

    def combs_of_queries(self, queries):
        return (Comb(0, queries.stop),)

    def retained_combs(self, now):
        return (Comb(0, now + 1),)


@dataclass(frozen=True)
class Local(Pattern):
    """The last ``window`` keys, the query's own position included."""

    window: int
    word = "local"

    def __post_init__(self):
        self._require_positive("window")

    def allows(self, q, k):
        return (k <= q) & (q - k < self.window)

    @property
    def conditions(self):
        return (Conditions(window=self.window),)

    def combs_of_queries(self, queries):
        return (Comb(max(0, queries.start + 1 - self.window), queries.stop),)

    def retained_combs(self, now):
        return (Comb(max(0, now + 2 - self.window), now + 1),)


@dataclass(frozen=True)
class Strided(Pattern):
    """Every ``stride``-th key counted back from the query, which is itself the first of them."""

    stride: int
    word = "strided"

    def __post_init__(self):
        self._require_positive("stride")

    def allows(self, q, k):
        return (k <= q) & ((q - k) % self.stride == 0)

    @property
    def conditions(self):
        return (Conditions(stride=self.stride),)

    def combs_of_queries(self, queries):
        residues = min(len(queries), self.stride)
        return (Comb(0, queries.stop, self.stride, queries.start % self.stride, residues),)

    def retained_combs(self, now):
        return (Comb(0, now + 1),)


@dataclass(frozen=True)
class BlockLocal(Pattern):
    """The keys of the query's own block, where blocks of ``length`` tile the sequence from 0."""

    length: int
    word = "block"

    def __post_init__(self):
        self._require_positive("length")

    def allows(self, q, k):
        return (k <= q) & (q // self.length == k // self.length)

    @property
    def conditions(self):
        return (Conditions(blocks=frozenset({self.length})),)

    def combs_of_queries(self, queries):
        return (Comb(queries.start - queries.start % self.length, queries.stop),)

    def retained_combs(self, now):
        return (Comb(now + 1 - (now + 1) % self.length, now + 1),)


@dataclass(frozen=True)
class Summary(Pattern):
    """The same ``columns`` positions of every block of ``length``, those up to the query.

    A block has ``length // columns`` sub-blocks, numbered from the block's end. Distinct heads read
    distinct sub-blocks, which the paper found better than sharing one (section 4.3): head h reads
    sub-block ``h mod (length // columns)``. ``subblock`` pins one; unpinned and outside a layer,
    the pattern is that of head 0.
    """

    length: int
    columns: int
    subblock: int | None = None
    word = "summary"

    def __post_init__(self):
        self._require_positive("length", "columns")
        if self.columns > self.length:
            raise UserError(
                f"a '{self.word}' pattern with {self.columns} columns in blocks of {self.length}:"
                f" the summary is wider than its block; take at most {self.length} columns"
            )
        if self.subblock is not None and not 0 <= self.subblock < self.subblocks:
            raise UserError(
                f"sub-block @{self.subblock} of a '{self.word}' pattern: blocks of {self.length}"
                f" hold {self.subblocks} sub-blocks of {self.columns} columns, @0 to"
                f" @{self.subblocks - 1}"
            )

    @property
    def subblocks(self) -> int:
        """How many distinct sub-blocks of ``columns`` positions a block holds."""
        return self.length // self.columns

    @property
    def first_column(self) -> int:
        """The first summary column within a block."""
        return self.length - ((self.subblock or 0) + 1) * self.columns

    def for_head(self, head):
        return self if self.subblock is not None else replace(self, subblock=head % self.subblocks)

    def allows(self, q, k):
        column = k % self.length
        first = self.first_column
        return (k <= q) & (column >= first) & (column < first + self.columns)

    @property
    def conditions(self):
        return (Conditions(columns=frozenset({(self.length, self.first_column, self.columns)})),)

    def combs_of_queries(self, queries):
        return (Comb(0, queries.stop, self.length, self.first_column, self.columns),)

    def retained_combs(self, now):
        return self.combs(now)

    def __str__(self):
        pin = "" if self.subblock is None else f"@{self.subblock}"
        return f"{self.word}:{self.length}:{self.columns}{pin}"


@dataclass(frozen=True)
class Fixed(Summary):
    """The paper's fixed pattern with both of its sets in one head: own block and summary columns.

    The form that the paper's enwik8 model used. Equal in its pairs to ``block:L+summary:L:C``.
    """

    word = "fixed"

    @property
    def parts(self):
        return BlockLocal(self.length), Summary(self.length, self.columns, self.subblock)

    def allows(self, q, k):
        block, summary = self.parts
        return block.allows(q, k) | summary.allows(q, k)

    @property
    def conditions(self):
        block, summary = self.parts
        return block.conditions + summary.conditions

    def combs_of_queries(self, queries):
        block, summary = self.parts
        return block.combs_of_queries(queries) + summary.combs_of_queries(queries)

    def retained_combs(self, now):
        block, summary = self.parts
        return block.retained_combs(now) + summary.retained_combs(now)


@dataclass(frozen=True)
class Union(Pattern):
    """All keys that at least one of ``members`` allows: several sets merged within one head."""

    members: tuple[Pattern, ...]
    word = "union"

    def __post_init__(self):
        if len(self.members) < 2:
            raise UserError("a union merges at least 2 patterns; write a single pattern by itself")

    @property
    def parts(self):
        return tuple(part for member in self.members for part in member.parts)

    def for_head(self, head):
        return Union(tuple(member.for_head(head) for member in self.members))

    def allows(self, q, k):
        first, *others = self.members
        allowed = first.allows(q, k)
        for other in others:
            allowed = allowed | other.allows(q, k)
        return allowed

    @property
    def conditions(self):
        return tuple(conditions for member in self.members for conditions in member.conditions)

    def combs_of_queries(self, queries):
        return tuple(comb for member in self.members for comb in member.combs_of_queries(queries))

    def retained_combs(self, now):
        return tuple(comb for member in self.members for comb in member.retained_combs(now))

    def __str__(self):
        return "+".join(map(str, self.members))


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
