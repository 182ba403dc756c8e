"""The ledger of blocks that take some heads and a chunk of tokens at a time (``head_chunk``)."""

from collections.abc import Iterator
from copy import copy

from sparse_tx.accounting.backward_pass import TrainingPass
from sparse_tx.accounting.forward_pass import (
    ACTIVATION_GRADIENTS,
    ATTENTION,
    FLOAT,
    QKV,
    RANDOM_STATE,
    RESIDUAL,
    WEIGHT_GRADIENTS,
    WORKSPACE,
)
from sparse_tx.accounting.ledger import Held

_BF16 = 2


class LongPass(TrainingPass):
    """A pass of any model: of its blocks as ``head_chunk`` has them, if that is set."""

    @property
    def rounds(self) -> bool:
        """Whether blocks' inputs are stored in half as many bytes, and widened chunk by chunk."""
        return self.config.stored_precision == "bf16"

    def blocks(self, x: Held, keep: bool) -> tuple[Held, list[dict[str, Held]]]:
        config, C = self.config, self.config.n_embd
        if config.head_chunk is None:
            return super().blocks(x, keep)
        kept_blocks = []
        for number in range(config.n_layer):
            kept = {}
            if keep:
                rounded = self.ledger.take(RESIDUAL, self.N * C * _BF16) if self.rounds else x
                kept["x"] = rounded
                state = RANDOM_STATE if config.dropout else 0
                kept["random state"] = self.ledger.take(RESIDUAL, state)
            heads = self.outputs_of_heads(number, widens=False)
            if keep and not self.rounds:
                x = self.rows(RESIDUAL, C)
            self.rest_of_block(heads)
            kept_blocks.append(kept)
        return x, kept_blocks

    def rest_of_block(self, heads: Held) -> None:
        """A block from its heads' outputs on, whose result goes where there is room already."""
        for n in self.pieces_in_turn():
            self.give(*self.of(n).after_heads(False, {}))
        self.give(heads)

    def pieces_in_turn(self) -> Iterator[int]:
        """The vectors of each piece, or of one for several alike."""
        yield from self.pieces()

    def keep_keys(self, number: int, heads: range) -> None:
        """Whatever is done with keys and values of some heads before they are attended to."""

    def blocks_backward(self, blocks: list[dict], gradient: Held) -> Held:
        if self.config.head_chunk is None:
            return super().blocks_backward(blocks, gradient)
        for number in reversed(range(self.config.n_layer)):
            state = self.ledger.take(RESIDUAL, RANDOM_STATE if self.config.dropout else 0)
            d_heads = self.outputs_of_heads(number, widens=self.rounds)
            for index, n in enumerate(self.pieces()):
                self.of(n).back_to_heads(first=index == 0)
            self.give(state)
            for index, heads in enumerate(self.config.head_groups):
                self.back_to_input(number, len(heads), first=index == 0)
            self.give(d_heads)
        for kept in blocks:
            self.give(kept["x"], kept["random state"])
        return gradient

    def of(self, n: int) -> "LongPass":
        """The pass of ``n`` of the vectors, in the same ledger."""
        piece = copy(self)
        piece.N, piece.in_pieces = n, False
        return piece

    def widths(self, n_head: int) -> tuple[int, int]:
        """Widths of the queries and of the values of so many heads."""
        H = self.config.n_head
        return n_head * self.config.qk_width // H, n_head * self.config.n_embd // H

    def outputs_of_heads(self, number: int, *, widens: bool) -> Held:
        """The outputs of all heads."""
        found = None
        for heads in self.config.head_groups:
            qkv = self.queries_keys_values(len(heads), widens)
            self.keep_keys(number, heads)
            out, lse = self.attend(number, len(heads))
            self.give(lse, *qkv)
            if found is None:
                found = self.rows(ATTENTION, self.config.n_embd)
            self.give(out)
        return found

    def attend(self, number: int, n_head: int) -> tuple[Held, Held]:
        """The outputs of so many heads, and their log-sum-exps."""
        workspace = self.workspaces[number % len(self.workspaces)]
        out, lse = self.rows(ATTENTION, self.widths(n_head)[1]), self.rows(ATTENTION, n_head)
        self.give(self.ledger.take(WORKSPACE, workspace.forward))
        return out, lse

    def projection(self, n_head: int) -> Held:
        """The weights of so many heads' queries, keys and values, put together."""
        Q, V = self.widths(n_head)
        return self.weights(QKV, (2 * Q + V) * self.config.n_embd)

    def queries_keys_values(self, n_head: int, widens: bool) -> list[Held]:
        """Those of so many heads."""
        Q, V = self.widths(n_head)
        projection, found = self.projection(n_head), []
        for n in self.pieces_in_turn():
            piece, kept = self.of(n), {}
            held = piece.widened(widens)
            norm, _ = piece.norm(False)
            kept["qkv"] = piece.rows(QKV, 2 * Q + V)
            self.give(norm)
            piece.split_heads(n_head, False, kept)
            self.table_is_new = piece.table_is_new
            if not found:
                found = [self.rows(QKV, width) for width in (Q, Q, V)]
            self.give(*held, kept["qkv"], *([kept["qk"]] if "qk" in kept else []))
        self.give(projection)
        return found

    def widened(self, widens: bool) -> list[Held]:
        """The vectors of a piece of the block's input in float32, where they are stored in less."""
        return [self.rows(RESIDUAL, self.config.n_embd)] if widens else []

    def after_heads(self, keep: bool, kept: dict[str, Held]) -> list[Held]:
        """The block from its heads' outputs on; returns the sums after each branch."""
        self.differentiates = keep
        copied = self.copy_of_piece(self.N)
        kept["output"] = self.rows(RESIDUAL, self.config.n_embd)
        if keep:
            kept["heads"] = copied
        else:
            self.give(copied)
        kept["middle"] = self.add_branch("attention", keep, kept)
        self.feed_forward(keep, kept)
        return [kept["middle"], self.add_branch("feed-forward", keep, kept)]

    def back_to_heads(self, *, first: bool) -> None:
        """A piece of the first stage of the backward pass."""
        C, kept = self.config.n_embd, {}
        gates = 2 if self.config.activation == "swiglu" else 1
        held, nothing = self.widened(self.rounds), Held(ACTIVATION_GRADIENTS, 0)
        middle, result = self.after_heads(True, kept)
        d_branch = self.branch_gradient("feed-forward", kept, nothing)
        if d_branch is nothing:
            d_branch = self.copy_of_piece(self.N)
        d_norm = self.feed_forward_backward(kept, d_branch, nothing)
        d_middle = self.through_norm(d_norm, middle, kept["of feed-forward norm"])
        d_sum = self.rows(ACTIVATION_GRADIENTS, C)
        self.give(d_middle)
        d_branch = self.branch_gradient("attention", kept, nothing)
        self.weights(WEIGHT_GRADIENTS, C * C)
        d_heads = self.rows(ACTIVATION_GRADIENTS, C)
        if not first:  # the sums over pieces are taken in place
            numbers = C * C + (1 + gates) * self.config.ff_width * C
            self.give(Held(WEIGHT_GRADIENTS, numbers * FLOAT))
        self.give(d_heads, d_branch, d_sum, kept["heads"], result, *held)

    def back_to_input(self, number: int, n_head: int, *, first: bool) -> None:
        """The second stage of the backward pass, for so many heads."""
        C, (Q, V) = self.config.n_embd, self.widths(n_head)
        qkv = self.queries_keys_values(n_head, self.rounds)
        out, lse = self.attend(number, n_head)
        d_lse = self.rows(ACTIVATION_GRADIENTS, n_head)
        d_qkv = [self.rows(ACTIVATION_GRADIENTS, width) for width in (Q, Q, V)]
        workspace = self.workspaces[number % len(self.workspaces)]
        self.give(self.ledger.take(WORKSPACE, workspace.backward))
        self.give(d_lse, out, lse, *qkv)
        projection = self.projection(n_head)
        of_group = Held(WEIGHT_GRADIENTS, (2 * Q + V) * C * FLOAT)
        for index, n in enumerate(self.pieces()):
            piece, kept = self.of(n), {}
            held = piece.widened(self.rounds)
            kept["attention in"], of_norm = piece.norm(True)
            kept["qkv"] = piece.rows(QKV, 2 * Q + V)
            piece.split_heads(n_head, True, kept)
            nothing = Held(ACTIVATION_GRADIENTS, 0)
            results = {
                name: kept[name] for name in ("qkv", "qk") if name in kept
            }  # held throughout
            kept |= dict.fromkeys(results, nothing)
            d_norm = piece.projection_backward(n_head, kept, [], [])
            self.give(piece.through_norm(d_norm, nothing, of_norm), *held, *results.values())
            if index:
                self.give(of_group)
        # Each part's gradient comes with zeros for the others, and is added to theirs.
        whole = (2 * self.config.qk_width + C) * C
        sums = [self.weights(WEIGHT_GRADIENTS, whole) for _ in range(2)]
        self.give(*sums[first:], of_group, projection, *d_qkv)
