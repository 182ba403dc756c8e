"""The peak memory of a pass through the model, by a ledger of every tensor it makes and frees.

What is held at one moment follows from what each operator keeps for its backward pass, and from
when Python and autograd let go. The methods below repeat the model's operators in their order, in
float32: a line of the ledger for every tensor that grows with the text or is as large as a weight.
Left out are small ones (numbers per layer, vectors of the model's width), and what a kernel
allocates by itself: an engine's workspace is handed in.
"""

from dataclasses import dataclass, replace
from math import prod

from sparse_tx.accounting.heads import positions, require_count
from sparse_tx.accounting.ledger import Held, Ledger
from sparse_tx.accounting.memory import training_state
from sparse_tx.accounting.parameters import list_weights
from sparse_tx.config import ModelConfig, TrainingConfig

_FLOAT, _INT64 = 4, 8
# The state of the random numbers on a CPU, kept with whatever is recomputed.
_RANDOM_STATE = 5056

# Who holds memory, as a person would name it.
_TOKENS = "tokens"
_RESIDUAL = "residual stream"
_NORMS = "normalised inputs"
_QKV = "queries, keys and values"
_ATTENTION = "attention outputs"
_FEED_FORWARD = "feed-forward"
_LOSS = "head and loss"
_ACTIVATION_GRADIENTS = "gradients of activations"
_WEIGHT_GRADIENTS = "gradients of weights"
_WORKSPACE = "workspace of the attention engine"


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Bytes that an attention engine holds beside inputs and results, while one layer runs.

    Attributes:
        forward: in the forward pass.
        backward: in the backward pass.
    """

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """The highest moment of a pass.

    Attributes:
        parts: bytes that were held then, by who held them, weights included.
        fresh_bytes: of the whole pass, bytes of tensors so large that malloc takes each of them
            anew from the system, a page fault for every page (see ``ledger.LARGE``).
    """

    parts: dict[str, int]
    fresh_bytes: int = 0

    @property
    def total(self) -> int:
        """All bytes of that moment."""
        return sum(self.parts.values())


def training_peak(
    model: ModelConfig,
    training: TrainingConfig,
    T: int | None = None,
    *,
    workspaces: tuple[Workspace, ...] = (),
) -> PeakMemory:
    """Count the most bytes that a step of training holds, in float32.

    Args:
        model: the model; of its engine only what ``workspaces`` says is known here.
        training: the batch size and the optimisers.
        T: tokens of a sequence; ``model.seq_len`` when not given.
        workspaces: of the attention engine, layer after layer, tiled over the depth; none if empty.

    Raises:
        UserError: ``T`` is below 1.
    """
    run = _Pass(model, T, training.batch_size, workspaces)
    state = training_state(model, training)
    for part, size in (
        ("weights", state.weights),
        ("optimiser state", state.optimiser),
        ("averaged weights", state.average),
        (_TOKENS, 2 * run.N * _INT64),  # inputs and targets
    ):
        run.ledger.take(part, size)
    run.rotary_table()
    before = run.ledger.taken_large
    run.backward(*run.forward(keep=True))
    if training.optimiser == "muon":
        run.muon_step()
    return PeakMemory(parts=run.ledger.at_peak, fresh_bytes=run.ledger.taken_large - before)


def inference_peak(
    model: ModelConfig,
    T: int | None = None,
    *,
    batch: int = 1,
    last_only: bool = False,
    workspaces: tuple[Workspace, ...] = (),
) -> PeakMemory:
    """Count the most bytes that a forward pass without gradients holds, in float32.

    Args:
        model: the model.
        T: tokens of a sequence; ``model.seq_len`` when not given.
        batch: sequences.
        last_only: whether the last token's logits are wanted, as generation does, not the loss.
        workspaces: as of ``training_peak``.

    Raises:
        UserError: ``T`` or ``batch`` is below 1.
    """
    run = _Pass(replace(model, dropout=0.0), T, batch, workspaces)
    run.ledger.take("weights", sum(w.parameters for w in list_weights(model)) * _FLOAT)
    run.ledger.take(_TOKENS, 2 * run.N * _INT64)  # with targets, or with the start symbol before
    run.rotary_table()
    before = run.ledger.taken_large
    run.forward(keep=False, last_only=last_only)
    return PeakMemory(parts=run.ledger.at_peak, fresh_bytes=run.ledger.taken_large - before)


def attention_peak(
    model: ModelConfig,
    T: int | None = None,
    *,
    batch: int = 1,
    workspaces: tuple[Workspace, ...] = (),
) -> PeakMemory:
    """Count the most bytes that one layer's attention holds, forward and backward, in float32.

    Queries, keys and values are held as the model has them: cut out of the projection, and those
    that norms or rotations have gone over beside it. The layer is the one that holds most.

    Arguments and errors as of ``inference_peak``.
    """
    run = _Pass(model, T, batch, workspaces)
    C, Q = model.n_embd, model.qk_width
    copied = model.qk_norm or model.position == "rope"
    run.rows(_QKV, 2 * Q + C + (2 * Q if copied else 0))
    run.rows(_ATTENTION, C + model.n_head)
    run.rows(_ACTIVATION_GRADIENTS, 2 * C + 2 * Q + model.n_head)
    run.ledger.take(_WORKSPACE, max(workspace.backward for workspace in run.workspaces))
    return PeakMemory(parts=run.ledger.at_peak)


class _Pass:
    """One pass; ``N`` vectors, those of all sequences, go through it."""

    def __init__(
        self, config: ModelConfig, T: int | None, batch: int, workspaces: tuple[Workspace, ...]
    ):
        require_count("batch", batch, "sequences")
        self.config, self.T, self.batch = config, positions(config, T), batch
        self.N = batch * self.T
        self.workspaces = workspaces or (Workspace(),)
        self.ledger = Ledger()
        self.give = self.ledger.give
        self.piece = min(self.N, batch * max(1, config.chunk // batch))  # of the feed-forward
        self.in_pieces = config.chunk < self.N

    def rows(self, part: str, width: int, n: int | None = None) -> Held:
        """Take ``n`` vectors of ``width`` numbers; ``N`` when not given."""
        return self.ledger.take(part, (self.N if n is None else n) * width * _FLOAT)

    def weights(self, part: str, numbers: int) -> Held:
        """Take as much as so many weights take."""
        return self.ledger.take(part, numbers * _FLOAT)

    def rotary_table(self) -> None:
        """The turns of rotary positions, kept from pass to pass for lengths up to a power of 2."""
        if self.config.position == "rope":
            head_dim = self.config.qk_width // self.config.n_head
            self.ledger.take("rotary table", (1 << (self.T - 1).bit_length()) * head_dim * _FLOAT)

    # --- The model, forward -------------------------------------------------------------------

    def forward(self, *, keep: bool, last_only: bool = False) -> tuple[list, list, list]:
        """Embeddings, blocks, final norm and loss.

        Returns:
            what is kept of the embeddings, of each block, and of the end.
        """
        config = self.config
        x, indices = self.embed(keep)
        kept_blocks = []
        for number in range(config.n_layer):
            keep_block = keep and not config.recompute
            new, kept = self.block(number, keep_block)
            if keep:
                kept["x"] = x
                kept["random state"] = self.ledger.take(
                    _RESIDUAL, _RANDOM_STATE if config.recompute else 0
                )
            else:
                self.give(x)
            kept_blocks.append(kept)
            x = new
        hidden, of_norm = self.norm(keep)
        if not keep:
            self.give(x)
        if last_only:
            self.give(hidden)
            return indices, kept_blocks, []
        gradients = self.loss(keep)
        self.give(hidden)
        return indices, kept_blocks, [*gradients, x, *of_norm]

    def embed(self, keep: bool) -> tuple[Held, list[Held]]:
        """Token embeddings, those of earlier tokens, and tables of positions."""
        C = self.config.n_embd
        x, indices = self.rows(_RESIDUAL, C), []
        for back in range(1, self.config.recent_tokens):
            padded = self.ledger.take(_TOKENS, self.batch * (self.T + back) * _INT64)
            added, new = self.rows(_RESIDUAL, C), self.rows(_RESIDUAL, C)
            self.give(added, x)
            x = new
            indices.append(padded)
            if not keep and len(indices) > 1:
                self.give(indices.pop(0))  # one is held until the pass is over
        axes = {"grid": self.config.grid, "table": (self.config.seq_len,)}
        if axes := axes.get(self.config.position, ()):
            place = self.ledger.take(_TOKENS, self.T * _INT64)
            total = None
            for _ in axes:
                along_axis = self.ledger.take(_TOKENS, self.T * _INT64)
                rows = self.rows(_RESIDUAL, C, self.T)
                indices.append(along_axis)
                if total is None:
                    total = rows
                else:
                    new = self.rows(_RESIDUAL, C, self.T)
                    self.give(total, rows)
                    total = new
            self.give(place)
            new = self.rows(_RESIDUAL, C)
            self.give(total, x)
            x = new
            if not keep:
                self.give(*indices[-len(axes) :])
                del indices[-len(axes) :]
        return x, indices

    def norm(self, keep: bool) -> tuple[Held, list[Held]]:
        """A normalisation: its result, and what its backward pass needs beside its input."""
        C = self.config.n_embd
        if self.config.norm == "layernorm":
            result, kept = self.rows(_NORMS, C), [self.rows(_NORMS, 2)]
        else:  # an RMS norm is made of smaller operators, and has a scale
            square, root = self.rows(_NORMS, C), self.rows(_NORMS, 1)
            self.give(square)
            normed, result = self.rows(_NORMS, C), self.rows(_NORMS, C)
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
            noise = self.rows(_RESIDUAL, self.config.n_embd)
            dropped = self.rows(_RESIDUAL, self.config.n_embd)
            self.give(output)
            output = dropped
            if keep:
                kept[f"{name} noise"] = noise
            else:
                self.give(noise)
        total = self.rows(_RESIDUAL, self.config.n_embd)
        self.give(output)
        return total

    def attention(self, number: int, keep: bool, kept: dict[str, Held]) -> None:
        """The attention branch up to its output projection."""
        config, C, Q = self.config, self.config.n_embd, self.config.qk_width
        kept["attention in"], kept["of attention norm"] = self.norm(keep)
        kept["qkv"] = self.rows(_QKV, 2 * Q + C)
        held = ["attention in", "qkv"]
        if config.qk_norm:
            copy = self.rows(_QKV, 2 * Q)
            kept["qk"] = self.rows(_QKV, 2 * Q)
            kept["qk stats"] = self.rows(_QKV, 4 * config.n_head)
            self.give(copy)
            if not keep:
                self.give(kept["qk stats"])
            held.append("qk")
        if config.position == "rope":
            rotated = self.rows(_QKV, 2 * Q)
            if config.qk_norm:
                self.give(kept["qk"])
            kept["qk"] = rotated
            held.append("qk")
        workspace = self.workspaces[number % len(self.workspaces)]
        kept["heads"] = self.rows(_ATTENTION, C)
        kept["lse"] = self.rows(_ATTENTION, config.n_head)
        self.give(self.ledger.take(_WORKSPACE, workspace.forward))
        if not keep:
            self.give(kept["lse"])
        kept["output"] = self.rows(_RESIDUAL, C)
        if not keep:
            self.give(*(kept[name] for name in {*held, "heads"}))

    def feed_forward(self, keep: bool, kept: dict[str, Held]) -> None:
        """The feed-forward branch, in pieces where the text is long."""
        C = self.config.n_embd
        norm, kept["of feed-forward norm"] = self.norm(keep)
        if self.in_pieces:
            done = [self.feed_forward_piece(n) for n in self.pieces()]
            kept["output"] = self.rows(_RESIDUAL, C)
            self.give(*done)
            if keep:
                kept["random states"] = self.random_states()
        else:
            activated, of_activation, spare = self.activation(self.N, keep)
            kept["output"] = self.rows(_RESIDUAL, C)
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
        return self.ledger.take(_FEED_FORWARD, len(self.pieces()) * _RANDOM_STATE)

    def pieces(self) -> list[int]:
        """The vectors of each piece."""
        whole, rest = divmod(self.N, self.piece)
        return [self.piece] * whole + ([rest] if rest else [])

    def feed_forward_piece(self, n: int) -> Held:
        """``n`` vectors through the feed-forward, of which nothing is kept."""
        self.give(self.copy_of_piece(n))
        activated, of_activation, spare = self.activation(n, keep=False)
        output = self.rows(_FEED_FORWARD, self.config.n_embd, n)
        self.give(activated, *of_activation, *spare)
        return output

    def copy_of_piece(self, n: int) -> Held:
        """What makes a piece contiguous, which of several sequences it is not."""
        return self.rows(_FEED_FORWARD, self.config.n_embd, n if self.batch > 1 else 0)

    def activation(self, n: int, keep: bool) -> tuple[Held, list[Held], list[Held]]:
        """The hidden layer of ``n`` vectors.

        Returns:
            the activated numbers, what else the backward pass needs, and what else is held until
            the branch is done.
        """
        F = self.config.ff_width

        def hidden(width: int = F) -> Held:
            return self.rows(_FEED_FORWARD, width, n)

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
        gradients = [self.rows(_LOSS, C), self.weights(_LOSS, V * C)] if keep else []
        before: list[Held] = []
        for start in range(0, self.N, self.config.chunk):
            n = min(self.config.chunk, self.N - start)
            logits = self.rows(_LOSS, V, n)
            log_probabilities = self.rows(_LOSS, V, n)
            self.give(logits, *before)
            if keep:
                self.give(self.rows(_LOSS, C, n))
            before = [log_probabilities]
        self.give(*before)
        return gradients

    # --- The model, backward ------------------------------------------------------------------

    def backward(self, indices: list[Held], blocks: list[dict], end: list[Held]) -> None:
        """From the loss to the embeddings, leaving the gradients of all weights."""
        config, C, V = self.config, self.config.n_embd, self.config.vocab_size
        d_hidden, d_head, x, *of_norm = end
        gradient = self.rows(_ACTIVATION_GRADIENTS, C)
        self.weights(_WEIGHT_GRADIENTS, V * C)
        self.give(d_hidden, d_head)
        gradient = self.through_norm(gradient, x, of_norm)
        for number in reversed(range(config.n_layer)):
            kept = blocks[number]
            if config.recompute:
                kept |= self.recompute_block(number)
            gradient = self.block_backward(number, kept, gradient)
        for weights in list_weights(config):
            if not weights.in_block and weights.part in ("embeddings", "positions"):
                self.weights(_WEIGHT_GRADIENTS, weights.parameters)
        self.give(gradient, *indices)

    def recompute_block(self, number: int) -> dict[str, Held]:
        """A block's forward pass once more, up to the last tensor that is kept."""
        kept: dict[str, Held] = {}
        self.attention(number, True, kept)
        kept["middle"] = self.add_branch("attention", True, kept)
        if self.config.dropout:
            self.feed_forward(True, kept)
            # The noise is kept last, so that the product with it is not taken.
            kept["feed-forward noise"] = self.rows(_RESIDUAL, self.config.n_embd)
            self.give(kept.pop("output"))
            return kept
        kept["feed-forward in"], kept["of feed-forward norm"] = self.norm(True)
        if self.in_pieces:
            self.give(*[self.feed_forward_piece(n) for n in self.pieces()[:-1]])
            kept["random states"] = self.random_states()
        else:
            kept["activated"], kept["of activation"], _ = self.activation(self.N, True)
        return kept

    def block_backward(self, number: int, kept: dict, gradient: Held) -> Held:
        """A block's backward pass: from the gradient of its result to that of its input."""
        d_branch = self.branch_gradient("feed-forward", kept, gradient)
        d_norm = self.feed_forward_backward(kept, d_branch, gradient)
        self.give(self.through_norm(d_norm, kept["middle"], kept["of feed-forward norm"]))
        d_branch = self.branch_gradient("attention", kept, gradient)
        d_norm = self.attention_backward(number, kept, d_branch, gradient)
        self.give(self.through_norm(d_norm, kept["x"], kept["of attention norm"]))
        self.give(kept["random state"])
        return gradient

    def branch_gradient(self, name: str, kept: dict, gradient: Held) -> Held:
        """The gradient of a branch's output: the sum's own, but for dropout."""
        if not self.config.dropout:
            return gradient
        d_branch = self.rows(_ACTIVATION_GRADIENTS, self.config.n_embd)
        self.give(kept[f"{name} noise"])
        return d_branch

    def through_norm(self, d_result: Held, x: Held, kept: list[Held]) -> Held:
        """The gradient of a normalisation's input; the input itself is no longer needed."""

        def vectors() -> Held:
            return self.rows(_ACTIVATION_GRADIENTS, self.config.n_embd)

        if self.config.norm == "layernorm":
            d_x = vectors()
            self.give(d_result, x, *kept)
            return d_x
        root, normed = kept
        d_normed = vectors()
        self.give(vectors())
        self.give(d_result, normed)
        d_x = vectors()
        self.give(vectors())
        self.give(d_normed)
        d_square = [vectors() for _ in range(4)]
        self.give(*d_square, root, x)
        return d_x

    def through_linear(self, d_result: Held, x: Held, fan_in: int, fan_out: int) -> Held:
        """The gradients of a linear map's weights, which stay, and of its input."""
        n = d_result.size // (_FLOAT * fan_out)
        self.weights(_WEIGHT_GRADIENTS, fan_in * fan_out)
        d_x = self.rows(_ACTIVATION_GRADIENTS, fan_in, n)
        self.give(x)
        return d_x

    def feed_forward_backward(self, kept: dict, d_branch: Held, gradient: Held) -> Held:
        """From the gradient of the branch's output to that of its normalised input."""
        C, F = self.config.n_embd, self.config.ff_width
        gates = 2 if self.config.activation == "swiglu" else 1
        if self.in_pieces:
            d_pieces = []
            for number, n in enumerate(reversed(self.pieces())):
                copy = self.copy_of_piece(n)
                activated, of_activation, _ = self.activation(n, True)
                d_weights = self.weights(_WEIGHT_GRADIENTS, F * C)
                d_output = self.copy_of_piece(n)
                d_hidden = self.rows(_ACTIVATION_GRADIENTS, F, n)
                self.give(activated, d_output)
                if len(d_pieces) + 1 == len(self.pieces()) and d_branch is not gradient:
                    self.give(d_branch)
                if number:  # the sum over pieces is taken in place
                    self.give(d_weights)
                d_hidden = self.through_activation(d_hidden, of_activation, n)
                d_weights = self.weights(_WEIGHT_GRADIENTS, gates * F * C)
                d_pieces.append(self.rows(_ACTIVATION_GRADIENTS, C, n))
                self.give(d_hidden, copy)
                if number:
                    self.give(d_weights)
            d_norm = self.rows(_ACTIVATION_GRADIENTS, C)
            self.give(*d_pieces, kept["random states"])
        else:
            d_hidden = self.through_linear(d_branch, kept["activated"], F, C)
            if d_branch is not gradient:
                self.give(d_branch)
            d_hidden = self.through_activation(d_hidden, kept["of activation"], self.N)
            self.weights(_WEIGHT_GRADIENTS, gates * F * C)
            d_norm = self.rows(_ACTIVATION_GRADIENTS, C)
            self.give(d_hidden)
        self.give(kept["feed-forward in"])
        return d_norm

    def through_activation(self, d_activated: Held, kept: list[Held], n: int) -> Held:
        """The gradient of the hidden layer before its activation."""
        F = self.config.ff_width

        def hidden(width: int = F) -> Held:
            return self.rows(_ACTIVATION_GRADIENTS, width, n)

        if self.config.activation == "relu2":
            d_hidden = hidden()
            self.give(d_activated, *kept)
            return d_hidden
        if self.config.activation == "gelu":
            divided = hidden()
            self.give(d_activated)
            d_scaled = hidden()
            self.give(divided, *kept)
            d_hidden = hidden()
            self.give(d_scaled)
            return d_hidden
        both, gate = kept
        d_silu, d_other = hidden(), hidden()
        self.give(d_activated, gate)
        d_gate = hidden()
        self.give(d_silu, both)
        d_both = hidden(2 * F)
        self.give(d_gate, d_other)
        return d_both

    def attention_backward(self, number: int, kept: dict, d_branch: Held, gradient: Held) -> Held:
        """From the gradient of the branch's output to that of its normalised input."""
        config, C, Q = self.config, self.config.n_embd, self.config.qk_width
        workspace = self.workspaces[number % len(self.workspaces)]
        self.weights(_WEIGHT_GRADIENTS, C * C)
        d_heads = self.rows(_ACTIVATION_GRADIENTS, C)
        if d_branch is not gradient:
            self.give(d_branch)
        d_lse = self.rows(_ACTIVATION_GRADIENTS, config.n_head)
        d_q, d_k = self.rows(_ACTIVATION_GRADIENTS, Q), self.rows(_ACTIVATION_GRADIENTS, Q)
        d_v = self.rows(_ACTIVATION_GRADIENTS, C)
        self.give(self.ledger.take(_WORKSPACE, workspace.backward))
        self.give(d_lse, d_heads, kept["heads"], kept["lse"])
        turned, normed = config.position == "rope", config.qk_norm
        if turned:
            self.give(kept["qk"])
        d_qk = self.rows(_ACTIVATION_GRADIENTS, 2 * Q)
        self.give(d_q, d_k)
        if turned:
            copy = self.ledger.take(_WORKSPACE, self.T * Q // config.n_head * _FLOAT)
            before = self.rows(_ACTIVATION_GRADIENTS, 2 * Q)
            self.give(copy, d_qk)
            d_qk = before
        if normed:
            if not turned:
                self.give(kept["qk"])
            copy = self.rows(_WORKSPACE, 2 * Q)
            before = self.rows(_ACTIVATION_GRADIENTS, 2 * Q)
            self.give(copy, d_qk, kept["qk stats"])
            d_qk = before
        self.give(kept["qkv"])
        d_qkv = self.rows(_ACTIVATION_GRADIENTS, 2 * Q + C)
        self.give(d_qk, d_v)
        self.weights(_WEIGHT_GRADIENTS, (2 * Q + C) * C)
        d_norm = self.rows(_ACTIVATION_GRADIENTS, C)
        self.give(d_qkv, kept["attention in"])
        return d_norm

    # --- The optimisers -----------------------------------------------------------------------

    def muon_step(self) -> None:
        """Orthogonalisation of the matrices of one shape together; AdamW is fused and in place."""
        numbers: dict[tuple[int, ...], int] = {}
        for weights in list_weights(self.config):
            if weights.in_block and len(weights.shape) == 2:
                numbers[weights.shape] = numbers.get(weights.shape, 0) + weights.copies
        before: list[Held] = []
        for shape, copies in numbers.items():
            whole, gram = copies * prod(shape), copies * min(shape) ** 2
            # The updates, their stack, the iterate and its multiple; then either four square
            # matrices (the Gram matrix, two of the polynomial's terms, their sum) or the Gram
            # matrix, the product and the next iterate.
            self.give(
                self.weights(
                    "workspace of the optimiser", 4 * whole + max(4 * gram, gram + 2 * whole)
                )
            )
            self.give(*before)
            before = [self.weights("workspace of the optimiser", whole)]
        self.give(*before)
