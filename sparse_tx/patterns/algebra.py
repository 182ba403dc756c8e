"""The patterns: for each query position, which key positions it may read.

Source: Child et al. 2019 (arXiv:1904.10509), section 4. The paper factors dense causal attention
into two cheaper sets whose composition still connects every pair of positions:

* *strided* (4.2): a local window, and every l-th earlier position;
* *fixed* (4.3): the query's own aligned block, and a few summary columns of every block.

Each set is a class here. ``Union`` merges sets within one head; ``stacks`` gives groups of heads
and successive layers different ones; ``maps`` has the sets of two dimensions. Everything is an
immutable value without tensors; masks, kernels, cache policy, costs and pictures are derived from
it.

A set relates positions to each other. In a text, a query reads of those that it is related to the
ones up to itself: the triangle, ``causal``. In a map, whose positions have no order, it reads all.
"""

from dataclasses import dataclass, fields, replace

from sparse_tx.errors import UserError
from sparse_tx.patterns.counting import (
    Conditions,
    count_by_readers,
    count_joint_classes,
    count_union,
)
from sparse_tx.patterns.keyset import Comb, KeySet

# Sizes are multiplied by positions and strides in 64 bits.
LARGEST = 2**31


class Pattern:
    """Who may look at whom within one head. Positions count from 0.

    Unless ``causal`` is False, no query reads a later key.
    """

    def relates(self, q, k):
        """Say whether the set holds the pair, whichever of the two comes first.

        Written with operators only, so that Python ints, NumPy arrays, torch tensors (broadcast
        against each other) and FlexAttention's ``mask_mod`` share this one definition.
        """
        raise NotImplementedError

    def allows(self, q, k, causal: bool = True):
        """Say whether query ``q`` may read key ``k``; of any form that ``relates`` takes."""
        return (k <= q) & self.relates(q, k) if causal else self.relates(q, k)

    def class_of(self, i):
        """A number, or a tuple of them, which positions that relate to the same keys share."""
        raise NotImplementedError

    @property
    def conditions(self) -> tuple[Conditions, ...]:
        """What a causal pair has to meet one of: conditions of every set of the pattern."""
        raise NotImplementedError

    def combs_of_queries(self, queries: range) -> tuple[Comb, ...]:
        """The keys that at least one of ``queries``, not empty and of step 1, reads, as combs."""
        raise NotImplementedError

    def combs_among(self, i: int, T: int) -> tuple[Comb, ...]:
        """The keys among ``T`` positions that position ``i`` is related to, as combs."""
        raise NotImplementedError

    def combs(self, i: int) -> tuple[Comb, ...]:
        """The keys that query ``i`` reads, as combs (see ``read_set``)."""
        return self.combs_of_queries(range(i, i + 1))

    def retained_combs(self, now: int) -> tuple[Comb, ...]:
        """The keys to keep after step ``now``, as combs (see ``retained``)."""
        raise NotImplementedError

    def count_pairs(self, T: int, causal: bool = True) -> int:
        """Count the allowed (query, key) pairs among ``T`` positions, exactly.

        Causal ones without a visit to every query, as ``Conditions.count_pairs`` says; so too
        without the triangle, unless tiles or lattices are among the sets, which takes O(T), or
        with windows and summaries beside them the time to look at every position's keys.
        """
        if causal:
            return count_union(self.conditions, T)
        if self.counts_by_mirror:
            return 2 * count_union(self.conditions, T) - T
        parts = tuple(dict.fromkeys(self.parts))
        if all(isinstance(part, Partition) for part in parts):
            return count_joint_classes(parts, T)
        return count_by_readers(self, T)

    def read_set(self, i: int, T: int | None = None) -> KeySet:
        """The keys that query ``i`` reads; given ``T``, among so many without the triangle."""
        return KeySet(*(self.combs(i) if T is None else self.combs_among(i, T)))

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
        """The sets whose union this pattern is: itself alone, unless it is made of others."""
        return (self,)

    @property
    def counts_by_mirror(self) -> bool:
        """Whether all pairs are the causal ones, which can be counted, and their mirror images.

        Each position is then related to itself, and those pairs are their own images.
        """
        return True

    @property
    def map_widths(self) -> frozenset[int]:
        """The widths of maps that the pattern is made for; empty where it names none."""
        return frozenset()

    def check_causal(self) -> None:
        """Raise a ``UserError`` if the pattern has no causal use."""

    def __str__(self) -> str:
        return ":".join([self.word, *(str(getattr(self, f.name)) for f in fields(self))])

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(
                    f"the {name} of a '{self.word}' pattern is {value!r}; it must be a whole number"
                    " of positions, 1 or more"
                )
            if value > LARGEST:
                raise UserError(
                    f"the {name} of a '{self.word}' pattern is {value}; it can be {LARGEST} at"
                    " most, which is longer than any sequence"
                )


class Partition(Pattern):
    """A set that parts the positions into classes, whose members are related to one another."""

    def relates(self, q, k):
        return self.class_of(q) == self.class_of(k)


@dataclass(frozen=True)
class Dense(Partition):
    """Every key: ordinary attention."""

    word = "dense"

    def allows(self, q, k, causal=True):
        return k <= q if causal else self.relates(q, k)

    def class_of(self, i):
        return i * 0  # of the form of i

    @property
    def conditions(self):
        return (Conditions(),)

    def combs_of_queries(self, queries):
        return (Comb(0, queries.stop),)

    def combs_among(self, i, T):
        return (Comb(0, T),)

    def retained_combs(self, now):
        return (Comb(0, now + 1),)


@dataclass(frozen=True)
class Local(Pattern):
    """The last ``window`` keys, the query's own position included; both ways, those nearer."""

    window: int
    word = "local"

    def __post_init__(self):
        self._require_positive("window")

    def relates(self, q, k):
        return (q - k < self.window) & (k - q < self.window)

    def allows(self, q, k, causal=True):
        return (k <= q) & (q - k < self.window) if causal else self.relates(q, k)

    def class_of(self, i):
        return i

    @property
    def conditions(self):
        return (Conditions(window=self.window),)

    def combs_of_queries(self, queries):
        return (Comb(max(0, queries.start + 1 - self.window), queries.stop),)

    def combs_among(self, i, T):
        return (Comb(max(0, i + 1 - self.window), min(T, i + self.window)),)

    def retained_combs(self, now):
        return (Comb(max(0, now + 2 - self.window), now + 1),)


@dataclass(frozen=True)
class Strided(Partition):
    """Every ``stride``-th key counted from the query, which is itself one of them."""

    stride: int
    word = "strided"

    def __post_init__(self):
        self._require_positive("stride")

    def relates(self, q, k):
        return (q - k) % self.stride == 0

    def class_of(self, i):
        return i % self.stride

    @property
    def conditions(self):
        return (Conditions(stride=self.stride),)

    def combs_of_queries(self, queries):
        residues = min(len(queries), self.stride)
        return (Comb(0, queries.stop, self.stride, queries.start % self.stride, residues),)

    def combs_among(self, i, T):
        return (Comb(0, T, self.stride, i % self.stride),)

    def retained_combs(self, now):
        return (Comb(0, now + 1),)


@dataclass(frozen=True)
class BlockLocal(Partition):
    """The keys of the query's own block, where blocks of ``length`` tile the sequence from 0."""

    length: int
    word = "block"

    def __post_init__(self):
        self._require_positive("length")

    def class_of(self, i):
        return i // self.length

    @property
    def conditions(self):
        return (Conditions(blocks=frozenset({self.length})),)

    def combs_of_queries(self, queries):
        return (Comb(queries.start - queries.start % self.length, queries.stop),)

    def combs_among(self, i, T):
        start = i - i % self.length
        return (Comb(start, min(T, start + self.length)),)

    def retained_combs(self, now):
        return (Comb(now + 1 - (now + 1) % self.length, now + 1),)


@dataclass(frozen=True)
class Summary(Pattern):
    """The same ``columns`` positions of every block of ``length``.

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

    @property
    def counts_by_mirror(self):
        return False

    def for_head(self, head):
        return self if self.subblock is not None else replace(self, subblock=head % self.subblocks)

    def relates(self, q, k):
        column = k % self.length
        first = self.first_column
        return (column >= first) & (column < first + self.columns)

    def class_of(self, i):
        return i * 0

    @property
    def conditions(self):
        return (Conditions(columns=frozenset({(self.length, self.first_column, self.columns)})),)

    def combs_of_queries(self, queries):
        return self.combs_among(queries.start, queries.stop)

    def combs_among(self, i, T):
        return (Comb(0, T, self.length, self.first_column, self.columns),)

    def retained_combs(self, now):
        return self.combs(now)

    def __str__(self):
        pin = "" if self.subblock is None else f"@{self.subblock}"
        return f"{self.word}:{self.length}:{self.columns}{pin}"


class Merged(Pattern):
    """All keys that at least one of ``members`` holds."""

    members: tuple[Pattern, ...]

    @property
    def parts(self):
        return tuple(part for member in self.members for part in member.parts)

    @property
    def counts_by_mirror(self):
        return all(member.counts_by_mirror for member in self.members)

    @property
    def map_widths(self):
        return frozenset().union(*(member.map_widths for member in self.members))

    def check_causal(self):
        for member in self.members:
            member.check_causal()

    def allows(self, q, k, causal=True):
        if causal:
            self.check_causal()
        return super().allows(q, k, causal)

    def relates(self, q, k):
        first, *others = self.members
        related = first.relates(q, k)
        for other in others:
            related = related | other.relates(q, k)
        return related

    def class_of(self, i):
        return tuple(member.class_of(i) for member in self.members)

    @property
    def conditions(self):
        return tuple(conditions for member in self.members for conditions in member.conditions)

    def combs_of_queries(self, queries):
        return tuple(comb for member in self.members for comb in member.combs_of_queries(queries))

    def combs_among(self, i, T):
        return tuple(comb for member in self.members for comb in member.combs_among(i, T))

    def retained_combs(self, now):
        return tuple(comb for member in self.members for comb in member.retained_combs(now))


@dataclass(frozen=True)
class Fixed(Merged, Summary):
    """The paper's fixed pattern with both of its sets in one head: own block and summary columns.

    The form that the paper's enwik8 model used. Equal in its pairs to ``block:L+summary:L:C``.
    """

    word = "fixed"

    @property
    def members(self):
        return BlockLocal(self.length), Summary(self.length, self.columns, self.subblock)


@dataclass(frozen=True)
class Union(Merged):
    """Several sets merged within one head."""

    members: tuple[Pattern, ...]
    word = "union"

    def __post_init__(self):
        if len(self.members) < 2:
            raise UserError("a union merges at least 2 patterns; write a single pattern by itself")

    def for_head(self, head):
        return Union(tuple(member.for_head(head) for member in self.members))

    def __str__(self):
        return "+".join(map(str, self.members))
