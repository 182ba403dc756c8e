"""The backward pass of a model and the optimiser's step, in the same ledger as the forward pass."""

from math import prod

from sparse_tx.accounting.forward_pass import (
    ACTIVATION_GRADIENTS,
    FLOAT,
    INT64,
    RESIDUAL,
    WEIGHT_GRADIENTS,
    WORKSPACE,
    ForwardPass,
)
from sparse_tx.accounting.ledger import Held
from sparse_tx.accounting.parameters import list_weights


class TrainingPass(ForwardPass):
    """A pass forward and backward, and what the optimisers do with its gradients."""

    def backward(self, indices: list[Held], blocks: list[dict], end: list[Held]) -> None:
        """From the loss to the embeddings, leaving the gradients of all weights."""
        config, C, V = self.config, self.config.n_embd, self.config.vocab_size
        d_hidden, d_head, x, *of_norm = end
        gradient = self.rows(ACTIVATION_GRADIENTS, C)
        self.weights(WEIGHT_GRADIENTS, V * C)
        self.give(d_hidden, d_head)
        gradient = self.through_norm(gradient, x, of_norm)
        gradient = self.blocks_backward(blocks, gradient)
        # Of the look-ups, a sparse gradient: as many rows as were read, if none was read twice.
        if rows := self.N * config.lookups_per_token:
            self.ledger.take(WEIGHT_GRADIENTS, rows * (C * FLOAT + INT64))
        for weights in list_weights(config):
            if not weights.in_block and weights.part in ("embeddings", "positions"):
                self.weights(WEIGHT_GRADIENTS, weights.parameters)
        self.give(gradient, *indices)

    def blocks_backward(self, blocks: list[dict], gradient: Held) -> Held:
        """All blocks, the last first."""
        for number in reversed(range(self.config.n_layer)):
            kept = blocks[number]
            if self.config.recompute:
                kept |= self.recompute_block(number)
            gradient = self.block_backward(number, kept, gradient)
        return gradient

    def recompute_block(self, number: int) -> dict[str, Held]:
        """A block's forward pass once more, up to the last tensor that is kept."""
        kept: dict[str, Held] = {}
        self.attention(number, True, kept)
        kept["middle"] = self.add_branch("attention", True, kept)
        if self.config.dropout:
            self.feed_forward(True, kept)
            # The noise is kept last, so that the product with it is not taken.
            kept["feed-forward noise"] = self.rows(RESIDUAL, self.config.n_embd)
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
        d_branch = self.rows(ACTIVATION_GRADIENTS, self.config.n_embd)
        self.give(kept[f"{name} noise"])
        return d_branch

    def through_norm(self, d_result: Held, x: Held, kept: list[Held]) -> Held:
        """The gradient of a normalisation's input; the input itself is no longer needed."""

        def vectors() -> Held:
            return self.rows(ACTIVATION_GRADIENTS, self.config.n_embd)

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

    def feed_forward_backward(self, kept: dict, d_branch: Held, gradient: Held) -> Held:
        """From the gradient of the branch's output to that of its normalised input."""
        C, F = self.config.n_embd, self.config.ff_width
        gates = 2 if self.config.activation == "swiglu" else 1
        if self.in_pieces:
            d_pieces = []
            for number, n in enumerate(reversed(self.pieces())):
                copy = self.copy_of_piece(n)
                activated, of_activation, _ = self.activation(n, True)
                last = number + 1 == len(self.pieces())
                if self.config.feed_forward_in_cache:
                    d_output = self.copy_of_piece(n)
                    d_pieces.append(self.backward_in_cache(n))
                    self.give(activated, copy, d_output)
                    if number:  # the sum over pieces is taken in place
                        self.give(Held(WEIGHT_GRADIENTS, 2 * F * C * FLOAT))
                    if last and d_branch is not gradient:
                        self.give(d_branch)
                    continue
                d_weights = self.weights(WEIGHT_GRADIENTS, F * C)
                d_output = self.copy_of_piece(n)
                d_hidden = self.rows(ACTIVATION_GRADIENTS, F, n)
                self.give(activated, d_output)
                if last and d_branch is not gradient:
                    self.give(d_branch)
                if number:  # the sum over pieces is taken in place
                    self.give(d_weights)
                d_hidden = self.through_activation(d_hidden, of_activation, n)
                d_weights = self.weights(WEIGHT_GRADIENTS, gates * F * C)
                d_pieces.append(self.rows(ACTIVATION_GRADIENTS, C, n))
                self.give(d_hidden, copy)
                if number:
                    self.give(d_weights)
            d_norm = self.rows(ACTIVATION_GRADIENTS, C)
            self.give(*d_pieces, kept["random states"])
        elif self.config.feed_forward_in_cache:
            d_norm = self.backward_in_cache(self.N)
            self.give(kept["activated"])
            if d_branch is not gradient:
                self.give(d_branch)
        else:
            self.weights(WEIGHT_GRADIENTS, F * C)
            d_hidden = self.rows(ACTIVATION_GRADIENTS, F)
            self.give(kept["activated"])
            if d_branch is not gradient:
                self.give(d_branch)
            d_hidden = self.through_activation(d_hidden, kept["of activation"], self.N)
            self.weights(WEIGHT_GRADIENTS, gates * F * C)
            d_norm = self.rows(ACTIVATION_GRADIENTS, C)
            self.give(d_hidden)
        self.give(kept["feed-forward in"])
        return d_norm

    def backward_in_cache(self, n: int) -> Held:
        """From the gradient of the output to that of the input, the hidden layer in two buffers."""
        C, F = self.config.n_embd, self.config.ff_width
        d_x = self.rows(ACTIVATION_GRADIENTS, C, n)
        self.weights(WEIGHT_GRADIENTS, 2 * F * C)
        self.give(*(self.hidden_buffer(n, ACTIVATION_GRADIENTS) for _ in range(2)))
        return d_x

    def through_activation(self, d_activated: Held, kept: list[Held], n: int) -> Held:
        """The gradient of the hidden layer before its activation."""
        F = self.config.ff_width

        def hidden(width: int = F) -> Held:
            return self.rows(ACTIVATION_GRADIENTS, width, n)

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
        C, Q, H = self.config.n_embd, self.config.qk_width, self.config.n_head
        workspace = self.workspaces[number % len(self.workspaces)]
        self.weights(WEIGHT_GRADIENTS, C * C)
        d_heads = self.rows(ACTIVATION_GRADIENTS, C)
        if d_branch is not gradient:
            self.give(d_branch)
        d_lse = self.rows(ACTIVATION_GRADIENTS, H)
        d_q, d_k = self.rows(ACTIVATION_GRADIENTS, Q), self.rows(ACTIVATION_GRADIENTS, Q)
        d_v = self.rows(ACTIVATION_GRADIENTS, C)
        self.give(self.ledger.take(WORKSPACE, workspace.backward))
        self.give(d_lse, d_heads, kept["heads"], kept["lse"])
        return self.projection_backward(H, kept, [d_q, d_k], [d_v])

    def projection_backward(
        self, n_head: int, kept: dict, d_qk_parts: list[Held], d_v: list[Held]
    ) -> Held:
        """From the gradients of so many heads' queries, keys and values to that of what is
        projected."""
        config, C = self.config, self.config.n_embd
        Q, V = (n_head * width // config.n_head for width in (config.qk_width, C))
        turned, normed = config.rotates, config.qk_norm
        if turned:
            self.give(kept["qk"])
        d_qk = self.rows(ACTIVATION_GRADIENTS, 2 * Q)
        self.give(*d_qk_parts)
        if turned:
            copy = self.ledger.take(
                WORKSPACE, self.N // self.batch * config.qk_width // config.n_head * FLOAT
            )
            before = self.rows(ACTIVATION_GRADIENTS, 2 * Q)
            self.give(copy, d_qk)
            d_qk = before
        if normed:
            if not turned:
                self.give(kept["qk"])
            copy = self.rows(WORKSPACE, 2 * Q)
            before = self.rows(ACTIVATION_GRADIENTS, 2 * Q)
            self.give(copy, d_qk, kept["qk stats"])
            d_qk = before
        self.give(kept["qkv"])
        d_qkv = self.rows(ACTIVATION_GRADIENTS, 2 * Q + V)
        self.give(d_qk, *d_v)
        self.weights(WEIGHT_GRADIENTS, (2 * Q + V) * C)
        d_norm = self.rows(ACTIVATION_GRADIENTS, C)
        self.give(d_qkv, kept["attention in"])
        return d_norm

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

    def lookups_step(self) -> None:
        """Row-wise Adagrad: what is added to each row, as many as were read in random text."""
        if rows := self.N * self.config.lookups_per_token:
            width = self.config.n_embd * FLOAT
            self.give(self.ledger.take("workspace of the optimiser", rows * width))
