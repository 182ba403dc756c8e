"""What a model is: everything that decides its shapes, its function and its initial weights."""

from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

from sparse_tx.errors import UserError
from sparse_tx.patterns import BlockLocal, Stack, Strided, Summary, parse_pattern

# Numbers of the queries, keys and values that exist at one time while a long prompt is read.
_READ_AT_ONCE = 1 << 27

# Lengths of a recalled match that have embeddings of their own; longer ones share the last.
RECALL_LENGTHS = 16
# Tokens at a time of a feed-forward whose hidden layer is to stay in a core's cache: at the width
# of preset cpu, its buffers are 1 MiB each (trials in docs/experiments.md).
FEED_FORWARD_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder. Options are by default as in the paper (arXiv:1904.10509, section 5)."""

    vocab_size: int = 256
    """Symbols of the tokenizer. Byte and char tokenizers bring their own; for bpe it is the aim."""
    seq_len: int = 1024
    """Context length in tokens."""
    n_layer: int = 4
    """Residual blocks."""
    n_head: int = 4
    """Attention heads per layer."""
    n_embd: int = 128
    """Model width C."""
    pattern: str = "local:128,strided:128"
    """Who may look at whom: ',' between layers, '/' between groups of heads, '+' within a head."""

    n_qk: int | None = None
    """Width of all queries (and of all keys) of a layer; n_embd when not given."""
    n_ff: int | None = None
    """Width of the feed-forward's hidden layer; 4 n_embd when not given."""
    activation: Literal["gelu", "relu2", "swiglu"] = "gelu"
    """Of the feed-forward: gelu is x sigmoid(1.702 x); swiglu has a third matrix."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before each branch and before the head."""
    bias: bool = True
    """Whether linear layers and layer norms have biases. The head has none."""
    qk_norm: bool = False
    """Whether each head's queries and keys are normalised (a layer norm without parameters)."""
    position: Literal["grid", "table", "rope", "grid+rope", "none"] = "grid"
    """grid: the paper's sum of one learned table per axis of a grid; table: one learned table;
    rope: rotary queries and keys; grid+rope: both, so that place and distance are told."""
    position_shape: tuple[int, ...] = ()
    """Axes of the position grid, slowest first, such as 64,64. By default rows as wide as the
    pattern's stride."""
    recent_tokens: int = 1
    """Tokens whose embeddings make up an input, each from its own table: the latest alone as in the
    paper, or some before it too, which gives the first layer its n-grams without attention."""
    ngrams: tuple[int, ...] = ()
    """Lengths of n-grams whose embeddings are added to an input, such as 2,3,4: hashed into tables,
    they cost memory but no products."""
    ngram_rows: int = 65_536
    """Rows of the table for the n-grams of one length; what hashes alike shares a row."""
    recall: int = 0
    """If not 0, the token that followed the last so many tokens when they stood in the window
    before is looked up and its embedding added to the input, whatever the pattern."""
    tie_embeddings: bool = False
    """Whether the head uses the token embedding's weights."""
    init: Literal["paper", "paper-code", "zero-out"] = "paper"
    """Standard deviation of weights: paper: .125 / sqrt(fan-in); paper-code: sqrt(.125 / fan-in),
    as the authors' code reads it; zero-out: the latter, with branch outputs at zero and inputs of
    unit variance."""

    dropout: float = 0.0
    """Probability of dropping an element of a branch's output; attention weights are kept."""
    recompute: bool = False
    """Whether blocks are computed again in the backward pass instead of kept."""
    chunk: int = 16_384
    """Tokens of the batch that feed-forward, head and loss take at a time."""
    head_chunk: int | None = None
    """Heads of a layer that attention takes at a time, for texts so long that even one layer's
    queries and keys are too large: norms and projections then take chunk tokens at a time, and
    training recomputes blocks. All heads together, in one piece, when not given."""
    stored_precision: Literal["fp32", "bf16"] = "fp32"
    """Of the blocks' inputs that head_chunk stores to recompute from: bf16 halves them, and rounds
    what gradients are taken at to 8 bits; the loss stays exact."""
    engine: str = "auto"
    """Attention engine: auto, reference, views, cpu, flex or triton."""

    def __post_init__(self):
        for name in (
            "vocab_size",
            "seq_len",
            "n_layer",
            "n_head",
            "n_embd",
            "recent_tokens",
            "ngram_rows",
            "chunk",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name, width in (("n_embd", self.n_embd), ("n_qk", self.qk_width)):
            if width < 1 or width % self.n_head:
                raise UserError(
                    f"{name} is {width}, which {self.n_head} heads (n_head) cannot share equally;"
                    f" use a multiple of {self.n_head}"
                )
        if self.head_chunk is not None and self.head_chunk < 1:
            raise UserError(
                f"head_chunk is {self.head_chunk}; it must be 1 or more, or null for all heads"
            )
        if self.stored_precision == "bf16" and self.head_chunk is None:
            raise UserError(
                "stored_precision is bf16, which head_chunk alone makes use of; set head_chunk too"
                f" ({self.n_head} takes all heads at a time)"
            )
        if self.ff_width < 1:
            raise UserError(f"n_ff is {self.n_ff}; it must be 1 or more")
        if any(n < 1 for n in self.ngrams) or list(self.ngrams) != sorted(set(self.ngrams)):
            raise UserError(
                f"ngrams is {','.join(map(str, self.ngrams))}; give each length once, ascending,"
                " such as 2,3,4"
            )
        if self.recall < 0:
            raise UserError(f"recall is {self.recall}; it must be 0 (off) or more")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it is a probability from 0 to below 1")
        for layer in self.stack.layers:
            layer.check_causal()
            layer.heads(self.n_head)
        if self.rotates and self.qk_width // self.n_head % 2:
            raise UserError(
                f"rotary positions turn pairs of numbers, but a query has {self.qk_width} / "
                f"{self.n_head} = {self.qk_width // self.n_head}; make n_qk / n_head even"
            )
        if any(size < 1 for size in self.position_shape):
            raise UserError(f"position_shape is {self.position_shape}; sizes are 1 or more")
        if self.has_grid and prod(self.grid) < self.seq_len:
            raise UserError(
                f"position_shape {'x'.join(map(str, self.grid))} has {prod(self.grid)} cells, fewer"
                f" than seq_len {self.seq_len}; leave it out to have it chosen"
            )

    @property
    def stack(self) -> Stack:
        """The parsed ``pattern``."""
        return parse_pattern(self.pattern)

    @property
    def recomputes(self) -> bool:
        """Whether training computes blocks again in the backward pass."""
        return self.recompute or self.head_chunk is not None

    @property
    def head_groups(self) -> tuple[range, ...]:
        """The heads of a layer in groups that attention takes at a time."""
        size = self.head_chunk or self.n_head
        firsts = range(0, self.n_head, size)
        return tuple(range(first, min(first + size, self.n_head)) for first in firsts)

    def heads_in_prefill(self, T: int) -> int:
        """Heads of a layer that take a prompt of ``T`` tokens at a time: the fewer, the longer."""
        width = (2 * self.qk_width + self.n_embd) // self.n_head
        return max(1, min(self.n_head, _READ_AT_ONCE // (T * width)))

    @property
    def qk_width(self) -> int:
        """Width of all queries of a layer."""
        return self.n_embd if self.n_qk is None else self.n_qk

    @property
    def feed_forward_in_cache(self) -> bool:
        """Whether a feed-forward of this kind takes FEED_FORWARD_TOKENS at a time on a CPU."""
        return self.activation == "relu2" and not self.bias

    @property
    def ff_width(self) -> int:
        """Width of the feed-forward's hidden layer."""
        return 4 * self.n_embd if self.n_ff is None else self.n_ff

    @property
    def lookup_rows(self) -> int:
        """Rows of the table that n-grams and recall look up; 0 where there is none."""
        recalled = 1 + RECALL_LENGTHS * (self.vocab_size + 1) if self.recall else 0
        return len(self.ngrams) * self.ngram_rows + recalled

    @property
    def lookups_per_token(self) -> int:
        """Rows of that table that a token reads."""
        return len(self.ngrams) + (self.recall > 0)

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are turned by their positions."""
        return self.position in ("rope", "grid+rope")

    @property
    def has_grid(self) -> bool:
        """Whether positions have a learned table for each axis of a grid."""
        return self.position in ("grid", "grid+rope")

    @property
    def position_axes(self) -> tuple[int, ...]:
        """Rows of each learned table of positions, slowest axis first; none without tables."""
        if self.has_grid:
            return self.grid
        return (self.seq_len,) if self.position == "table" else ()

    @property
    def grid(self) -> tuple[int, ...]:
        """Axes of the position grid, slowest first.

        The paper indexes text by row and column of a matrix as wide as the stride (section 5.2).
        """
        if self.position_shape:
            return tuple(self.position_shape)
        width = min(self._stride(), self.seq_len)
        return ceil(self.seq_len / width), width

    @property
    def most_positions(self) -> int | None:
        """Tokens that a fixed grid of positions has cells for; None where any length fits."""
        return prod(self.position_shape) if self.has_grid and self.position_shape else None

    def _stride(self) -> int:
        for layer in self.stack.layers:
            for group in layer.groups:
                for part in group.parts:
                    if isinstance(part, Strided):
                        return part.stride
                    if isinstance(part, BlockLocal | Summary):
                        return part.length
        return max(1, ceil(self.seq_len**0.5))
