"""The forward pass of a model, as a ledger of every tensor that it makes and frees.

What is held at one moment follows from what each operator keeps for its backward pass, and from
when Python and autograd let go. The methods repeat the model's operators in their order, as on a
CPU in float32: a line of the ledger for every tensor that grows with the text or is as large as a
weight. Left out are small ones (numbers per layer, vectors of the model's width), and what a kernel
allocates by itself: an engine's workspace is handed in.
"""

from dataclasses import dataclass

from sparse_tx.accounting.heads import positions, require_count
from sparse_tx.accounting.ledger import Held, Ledger
from sparse_tx.config import ModelConfig
from sparse_tx.config.model import FEED_FORWARD_TOKENS

FLOAT, INT64 = 4, 8
# The state of the random numbers on a CPU, kept with whatever is recomputed.
RANDOM_STATE = 5056

# Who holds memory, as a person would name it.
TOKENS = "tokens"
RESIDUAL = "residual stream"
NORMS = "normalised inputs"
QKV = "queries, keys and values"
ATTENTION = "attention outputs"
FEED_FORWARD = "feed-forward"
LOSS = "head and loss"
ACTIVATION_GRADIENTS = "gradients of activations"
WEIGHT_GRADIENTS = "gradients of weights"
WORKSPACE = "workspace of the attention engine"
ROTARY_TABLE = "rotary table"
INPUTS = "inputs of attention"


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Bytes that an attention engine holds beside inputs and results, while one layer runs.

    Attributes:
        forward: in the forward pass.
        backward: in the backward pass.
    """

    forward: int = 0
    backward: int = 0


class ForwardPass:
    """One pass; ``N`` vectors, those of all sequences, go through it."""

    def __init__(
        self, config: ModelConfig, T: int | None, batch: int, workspaces: tuple[Workspace, ...]
    ):
        require_count("batch", batch, "sequences")
        self.config, self.T, self.batch = config, positions(config, T), batch
        self.N = batch * self.T
        self.workspaces = workspaces or (Workspace(),)
        self.ledger = Ledger()
        self.differentiates = True  # whether operators are to keep what gradients need
        self.table_is_new = False  # whether rotary turns are yet to be computed
        self.give = self.ledger.give
        self.piece = min(self.N, batch * max(1, config.chunk // batch))  # of the feed-forward
        self.in_pieces = config.chunk < self.N

    def rows(self, part: str, width: int, n: int | None = None) -> Held:
        """Take ``n`` vectors of ``width`` numbers; ``N`` when not given."""
        return self.ledger.take(part, (self.N if n is None else n) * width * FLOAT)

    def weights(self, part: str, numbers: int) -> Held:
        """Take as much as so many weights take."""
        return self.ledger.take(part, numbers * FLOAT)

    def rotary_table(self) -> None:
        """The turns of rotary positions, kept from pass to pass for lengths up to a power of 2."""
        if self.config.rotates:
            head_dim = self.config.qk_width // self.config.n_head
            self.table = self.ledger.take(
                ROTARY_TABLE, (1 << (self.T - 1).bit_length()) * head_dim * FLOAT
            )

    def forward(self, *, keep: bool) -> tuple[list, list, list]:
        """Embeddings, blocks, final norm and loss.

        Returns:
            what is kept of the embeddings, of each block, and of the end.
        """
        self.differentiates = keep
        x, indices = self.embed(keep)
        x, kept_blocks = self.blocks(x, keep)
        hidden, of_norm = self.norm(keep)
        if not keep:
            self.give(x)
        gradients = self.loss(keep)
        self.give(hidden)
        return indices, kept_blocks, [*gradients, x, *of_norm]

    def blocks(self, x: Held, keep: bool) -> tuple[Held, list[dict[str, Held]]]:
        """All blocks: their result, and what is kept of each."""
        config, kept_blocks = self.config, []
        for number in range(config.n_layer):
            keep_block = keep and not config.recompute
            new, kept = self.block(number, keep_block)
            if keep:
                kept["x"] = x
                kept["random state"] = self.ledger.take(
                    RESIDUAL, RANDOM_STATE if config.recompute else 0
                )
            else:
                self.give(x)
            kept_blocks.append(kept)
            x = new
        return x, kept_blocks

    def embed(self, keep: bool) -> tuple[Held, list[Held]]:
        """Token embeddings, those of earlier tokens, look-ups, and tables of positions."""
        C = self.config.n_embd
        x, indices = self.rows(RESIDUAL, C), []
        for back in range(1, self.config.recent_tokens):
            padded = self.ledger.take(TOKENS, self.batch * (self.T + back) * INT64)
            added, new = self.rows(RESIDUAL, C), self.rows(RESIDUAL, C)
            self.give(added, x)
            x = new
            indices.append(padded)
            if not keep and len(indices) > 1:
                self.give(indices.pop(0))  # one is held until all is embedded
        if per_token := self.config.lookups_per_token:
            rows = self.ledger.take(TOKENS, self.N * per_token * INT64)
            bags = self.ledger.take(TOKENS, self.N * 3 * INT64)  # which rows make a sum
            added = self.rows(RESIDUAL, C)
            self.give(bags)
            new = self.rows(RESIDUAL, C)
            self.give(added, x)
            x = new
            if keep:
                indices.append(rows)
            else:
                self.give(rows)
        if axes := self.config.position_axes:
            place = self.ledger.take(TOKENS, self.T * INT64)
            total = None
            for _ in axes:
                along_axis = self.ledger.take(TOKENS, self.T * INT64)
                rows = self.rows(RESIDUAL, C, self.T)
                indices.append(along_axis)
                if total is None:
                    total = rows
                else:
                    new = self.rows(RESIDUAL, C, self.T)
                    self.give(total, rows)
                    total = new
            self.give(place)
            new = self.rows(RESIDUAL, C)
            self.give(total, x)
            x = new
            if not keep:
                self.give(*indices[-len(axes) :])
                del indices[-len(axes) :]
        if not keep:
            self.give(*indices)
        return x, indices if keep else []

    def norm(self, keep: bool) -> tuple[Held, list[Held]]:
        """A normalisation: its result, and what its backward pass needs beside its input."""
        C = self.config.n_embd
        if self.config.norm == "layernorm":
            result, kept = self.rows(NORMS, C), [self.rows(NORMS, 2)]
        else:  # an RMS norm is made of smaller operators, and has a scale
            square, root = self.rows(NORMS, C), self.rows(NORMS, 1)
            self.give(square)
            normed, result = self.rows(NORMS, C), self.rows(NORMS, C)
            kept = [root, normed]
        if not keep:
            self.give(*kept)
        return result, kept if keep else []

    def block(self, number: int, keep: bool) -> tuple[Held, dict[str, Held]]:
        """A residual block, whose input stays with the caller: its result, and what is kept."""
        kept: dict[str, Held] = {}
        self.attention(number, keep, kept)
        middle = self.add_branch("attention", keep, kept)
        kept["middle"] = middle
        self.feed_forward(keep, kept)
        new = self.add_branch("feed-forward", keep, kept)
        if not keep:
            self.give(middle)
            kept.clear()
        return new, kept

    def add_branch(self, name: str, keep: bool, kept: dict[str, Held]) -> Held:
        """Dropout of a branch's output, and the sum with what came in."""
        output = kept.pop("output")
        if self.config.dropout:
            noise = self.rows(RESIDUAL, self.config.n_embd)
            dropped = self.rows(RESIDUAL, self.config.n_embd)
            self.give(output)
            output = dropped
            if keep:
                kept[f"{name} noise"] = noise
            else:
                self.give(noise)
        total = self.rows(RESIDUAL, self.config.n_embd)
        self.give(output)
        return total

    def attention(self, number: int, keep: bool, kept: dict[str, Held]) -> None:
        """The attention branch up to its output projection."""
        config, C, Q = self.config, self.config.n_embd, self.config.qk_width
        kept["attention in"], kept["of attention norm"] = self.norm(keep)
        kept["qkv"] = self.rows(QKV, 2 * Q + C)
        self.split_heads(config.n_head, keep, kept)
        workspace = self.workspaces[number % len(self.workspaces)]
        kept["heads"] = self.rows(ATTENTION, C)
        kept["lse"] = self.rows(ATTENTION, config.n_head)
        self.give(self.ledger.take(WORKSPACE, workspace.forward))
        if not keep:
            self.give(kept["lse"])
        kept["output"] = self.rows(RESIDUAL, C)
        if not keep:
            held = ("attention in", "qkv", "qk", "heads")
            self.give(*(kept[name] for name in held if name in kept))

    def split_heads(self, n_head: int, keep: bool, kept: dict[str, Held]) -> None:
        """Queries and keys of so many heads, normalised and rotated as configured."""
        config, Q = self.config, n_head * self.config.qk_width // self.config.n_head
        if config.qk_norm:
            copy = self.rows(QKV, 2 * Q)
            kept["qk"] = self.rows(QKV, 2 * Q)
            kept["qk stats"] = self.rows(QKV, 4 * n_head)
            self.give(copy)
            if not keep:
                self.give(kept["qk stats"])
        if config.rotates:
            if self.table_is_new:  # made of angles and complex numbers in float64, 3 times as large
                self.give(self.ledger.take(ROTARY_TABLE, 3 * self.table.size))
                self.table_is_new = False
            rotated = self.rows(QKV, 2 * Q)
            if config.qk_norm:
                self.give(kept["qk"])
            kept["qk"] = rotated

    def feed_forward(self, keep: bool, kept: dict[str, Held]) -> None:
        """The feed-forward branch, in pieces where the text is long."""
        C = self.config.n_embd
        norm, kept["of feed-forward norm"] = self.norm(keep)
        if self.in_pieces:
            done = [self.feed_forward_piece(n) for n in self.pieces()]
            kept["output"] = self.rows(RESIDUAL, C)
            self.give(*done)
            if keep:
                kept["random states"] = self.random_states()
        else:
            activated, of_activation, spare = self.activation(self.N, keep)
            kept["output"] = self.rows(RESIDUAL, C)
            self.squares_of_chunks(self.N)
            if keep:
                kept["activated"], kept["of activation"] = activated, of_activation
            else:
                self.give(activated, *of_activation, *spare)
        if keep:
            kept["feed-forward in"] = norm
        else:
            self.give(norm)

    def random_states(self) -> Held:
        """One for each piece."""
        return self.ledger.take(FEED_FORWARD, len(self.pieces()) * RANDOM_STATE)

    def pieces(self) -> list[int]:
        """The vectors of each piece."""
        whole, rest = divmod(self.N, self.piece)
        return [self.piece] * whole + ([rest] if rest else [])

    def feed_forward_piece(self, n: int) -> Held:
        """``n`` vectors through the feed-forward, of which nothing is kept."""
        copy = self.copy_of_piece(n)
        held_throughout = self.config.feed_forward_in_cache and not self.differentiates
        if not held_throughout:
            self.give(copy)
        activated, of_activation, spare = self.activation(n, keep=False)
        output = self.rows(FEED_FORWARD, self.config.n_embd, n)
        self.squares_of_chunks(n)
        self.give(activated, *of_activation, *spare)
        if held_throughout:
            self.give(copy)
        return output

    def copy_of_piece(self, n: int) -> Held:
        """What makes a piece contiguous, which of several sequences it is not."""
        return self.rows(FEED_FORWARD, self.config.n_embd, n if self.batch > 1 else 0)

    def hidden_buffer(self, n: int, part: str = FEED_FORWARD) -> Held:
        """The hidden layer of as many of ``n`` vectors as are to stay in the cache."""
        return self.rows(part, self.config.ff_width, min(n, FEED_FORWARD_TOKENS))

    def squares_of_chunks(self, n: int) -> None:
        """What the second product reads, where not the activated numbers are kept, but roots."""
        if self.config.feed_forward_in_cache and self.differentiates:
            self.give(self.hidden_buffer(n))

    def activation(self, n: int, keep: bool) -> tuple[Held, list[Held], list[Held]]:
        """The hidden layer of ``n`` vectors.

        Returns:
            the activated numbers, what else the backward pass needs, and what else is held until
            the branch is done.
        """
        F = self.config.ff_width

        def hidden(width: int = F) -> Held:
            return self.rows(FEED_FORWARD, width, n)

        if self.config.feed_forward_in_cache:
            return (hidden() if self.differentiates else self.hidden_buffer(n)), [], []

        if self.config.activation == "swiglu":
            both, gate = hidden(2 * F), hidden()
            activated = hidden()
            if keep:
                return activated, [both, gate], []
            self.give(gate)
            return activated, [], [both]
        expanded = hidden()
        if self.config.activation == "relu2":
            positive, activated = hidden(), hidden()
            self.give(expanded)
        else:
            positive, sigmoid = hidden(), hidden()
            if not keep:
                self.give(positive)
            activated = hidden()
            self.give(sigmoid, expanded)
            return activated, [positive] if keep else [], []
        if keep:
            return activated, [positive], []
        self.give(positive)
        return activated, [], []

    def loss(self, keep: bool) -> list[Held]:
        """Cross-entropy in chunks; with ``keep``, the gradients that are taken with it."""
        C, V = self.config.n_embd, self.config.vocab_size
        gradients = [self.rows(LOSS, C), self.weights(LOSS, V * C)] if keep else []
        before: list[Held] = []
        for start in range(0, self.N, self.config.chunk):
            n = min(self.config.chunk, self.N - start)
            logits = self.rows(LOSS, V, n)
            log_probabilities = self.rows(LOSS, V, n)
            self.give(logits, *before)
            if keep:
                self.give(self.rows(LOSS, C, n))
            before = [log_probabilities]
        self.give(*before)
        return gradients
