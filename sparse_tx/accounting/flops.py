"""Floating-point operations of one forward and backward pass, part by part.

The convention: matrix products only, and a multiplication with its addition is 2 operations.
Softmax, norms, activations, look-ups and sums are not counted, nor is the optimiser's work. A fused
attention computes its scores again in the backward pass, which therefore has five products per
pair: scores again, d_values, d_weights, d_queries, d_keys (Dao 2023, arXiv:2307.08691, algorithm
2); an attention that keeps its weights has the last four.

Two figures share it and differ in the pairs that attention is charged for: *useful* FLOPs in those
that the pattern allows, *nominal* FLOPs in all T x T of them, future ones included, which is what
``torch.utils.flop_counter`` and most papers count for causal attention. A step of generation has
one query, and all T keys are what it would read of a dense cache.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from math import isfinite

from sparse_tx.accounting.heads import attended_pairs, keys_of_last, positions, require_count
from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError


@dataclass(frozen=True)
class Passes:
    """FLOPs of one part of a model.

    Attributes:
        forward: of the forward pass, once.
        backward: of the gradients for inputs and weights.
        recompute: of what the forward pass did not keep and the backward pass computes again.
    """

    forward: int = 0
    backward: int = 0
    recompute: int = 0

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(
            self.forward + other.forward,
            self.backward + other.backward,
            self.recompute + other.recompute,
        )

    def __mul__(self, times: int) -> "Passes":
        return Passes(self.forward * times, self.backward * times, self.recompute * times)

    @property
    def total(self) -> int:
        """All three."""
        return self.forward + self.backward + self.recompute


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of a whole model by its parts, each over all layers.

    Attributes:
        qkv: the projection to queries, keys and values.
        scores: queries times keys.
        values: attention weights times values.
        output: the projection of the heads' outputs.
        feed_forward: its two matrices, three for swiglu.
        embeddings: none, as a look-up takes no product.
        head: hidden states times the head's weights.
        loss: none beyond the head, as softmax and logarithm take no product.
    """

    qkv: Passes
    scores: Passes
    values: Passes
    output: Passes
    feed_forward: Passes
    embeddings: Passes = Passes()
    head: Passes
    loss: Passes = Passes()

    @property
    def parts(self) -> dict[str, Passes]:
        """The parts by name, in the order of the forward pass."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def all_parts(self) -> Passes:
        """The sum of the parts."""
        return _sum(self.parts.values())

    @property
    def total(self) -> int:
        """Forward, backward and recompute of all parts."""
        return self.all_parts.total

    @property
    def without_recompute(self) -> int:
        """Forward and backward of all parts: what the mathematics asks for."""
        return self.total - self.all_parts.recompute

    def __mul__(self, times: int) -> "Flops":
        return Flops(**{name: passes * times for name, passes in self.parts.items()})

    def seconds(self, flops_per_s: float) -> float:
        """The time that all of this takes at a stated or measured rate.

        Args:
            flops_per_s: operations in a second, counted by the same convention.

        Raises:
            UserError: the rate is not above 0.
        """
        if not (isfinite(flops_per_s) and flops_per_s > 0):
            raise UserError(
                f"a rate of {flops_per_s} FLOP/s; it must be above 0, such as 1e11 for a CPU core"
            )
        return self.total / flops_per_s


def matrix_product(rows: int, inner: int, columns: int) -> int:
    """FLOPs of a ``(rows, inner)`` matrix times an ``(inner, columns)`` one."""
    return 2 * rows * inner * columns


def linear(rows: int, fan_in: int, fan_out: int, *, again: int = 0) -> Passes:
    """A linear map of ``rows`` vectors, with gradients for its inputs and its weights.

    Args:
        rows: vectors, over the whole batch.
        fan_in: their width.
        fan_out: width of the result.
        again: how many vectors are mapped again in the backward pass.
    """
    product = matrix_product(rows, fan_in, fan_out)
    return Passes(product, 2 * product, matrix_product(again, fan_in, fan_out))


def useful_flops(config: ModelConfig, T: int | None = None, batch: int = 1) -> Flops:
    """FLOPs of a training pass in which attention is charged for the attended pairs alone.

    Args:
        config: the model.
        T: tokens of a sequence; ``config.seq_len`` when not given.
        batch: sequences.

    Raises:
        UserError: ``T`` or ``batch`` is below 1.
    """
    return _flops(config, positions(config, T), batch, attended_pairs(config, T).total)


def nominal_flops(config: ModelConfig, T: int | None = None, batch: int = 1) -> Flops:
    """FLOPs of a training pass in which attention is charged as if it were dense, T x T.

    Arguments and errors as of ``useful_flops``.
    """
    T = positions(config, T)
    return _flops(config, T, batch, config.n_layer * config.n_head * T * T)


def prefill_flops(
    config: ModelConfig, T: int | None = None, batch: int = 1, *, nominal: bool = False
) -> Flops:
    """FLOPs of reading texts of ``T`` tokens: a forward pass whose head sees the last one alone.

    Args:
        config: the model.
        T: tokens of a text, the start symbol included; ``config.seq_len`` when not given.
        batch: texts.
        nominal: whether attention is charged as if it were dense.

    Raises:
        UserError: ``T`` or ``batch`` is below 1.
    """
    count = nominal_flops if nominal else useful_flops
    last = matrix_product(batch, config.n_embd, config.vocab_size)
    return replace(_forward_of(count(config, T, batch)), head=Passes(last))


def decoding_flops(
    config: ModelConfig, T: int | None = None, batch: int = 1, *, nominal: bool = False
) -> Flops:
    """FLOPs of the step that makes texts ``T`` tokens long, with those before in a cache.

    One token goes through all weights, and its query meets the keys that its pattern reads.

    Args:
        config: the model.
        T: tokens of a text after the step; ``config.seq_len`` when not given.
        batch: texts, each of which grows by one token.
        nominal: whether attention is charged as if it were dense.

    Raises:
        UserError: ``T`` or ``batch`` is below 1.
    """
    T = positions(config, T)
    keys = config.n_layer * config.n_head * T if nominal else keys_of_last(config, T).total
    return _forward_of(_flops(config, 1, batch, keys))


def _forward_of(flops: Flops) -> Flops:
    return Flops(**{name: Passes(passes.forward) for name, passes in flops.parts.items()})


def _flops(config: ModelConfig, T: int, batch: int, pairs: int) -> Flops:
    """``pairs`` are those of one sequence, over all layers and heads."""
    require_count("batch", batch, "sequences")
    C, N, layers = config.n_embd, batch * T, config.n_layer
    again = int(config.recomputes)
    # Some heads at a time are computed for the rest of the block, then for themselves; their
    # queries, keys and values once more chunk by chunk, when the gradients of these are there.
    heads_again, qkv_again = (again, again) if config.head_chunk is None else (2, 3)

    def attention_product(width: int, products_backward: int) -> Passes:
        product = matrix_product(batch * pairs, width // config.n_head, 1)
        return Passes(product, products_backward * product, heads_again * product)

    return Flops(
        qkv=linear(N, C, 2 * config.qk_width + C, again=qkv_again * N) * layers,
        scores=attention_product(config.qk_width, 3),
        values=attention_product(C, 2),
        output=linear(N, C, C, again=again * N) * layers,
        feed_forward=_feed_forward(config, T, batch) * layers,
        head=linear(N, C, config.vocab_size),  # its gradients are taken while the logits exist
    )


def _feed_forward(config: ModelConfig, T: int, batch: int) -> Passes:
    """One layer's feed-forward, which takes long batches in pieces that are always recomputed.

    Recomputation ends at the last tensor that the backward pass needs. That is never the output of
    a piece, so that its second matrix is not multiplied again. It is the output of the whole
    feed-forward only where dropout follows; where it does not, and the feed-forward is in pieces,
    recomputing the block stops before the last piece, whose backward pass needs its input alone.
    With ``head_chunk``, a piece is the rest of the block too, and is computed again as a whole.
    """
    N, hidden = batch * T, config.ff_width
    gates = 2 if config.activation == "swiglu" else 1
    piece = max(1, config.chunk // batch)  # tokens of each sequence
    long = config.head_chunk is not None
    in_pieces = config.chunk < (batch if long else N)
    again_expand, again_out = (N, N) if config.recomputes else (0, 0)
    if config.recompute and not long and not config.dropout:
        last = batch * ((T - 1) % piece + 1) if in_pieces else N
        again_expand -= last if in_pieces else 0
        again_out -= last
    if in_pieces:
        again_expand += N
    return linear(N, config.n_embd, gates * hidden, again=again_expand) + linear(
        N, hidden, config.n_embd, again=again_out
    )


def _sum(passes: Iterable[Passes]) -> Passes:
    return sum(passes, Passes())
