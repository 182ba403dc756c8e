"""Bytes: what training keeps from step to step, and what generation keeps and reads."""

from dataclasses import dataclass
from math import prod

from sparse_tx.accounting.heads import PerHead, for_each_head, positions, require_count
from sparse_tx.accounting.parameters import list_weights
from sparse_tx.accounting.slots import count_slots
from sparse_tx.config import ModelConfig, TrainingConfig

# Weights, gradients and optimiser state are float32 whatever the precision of the products.
_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Bytes that live as long as a training run.

    Attributes:
        weights: the parameters.
        gradients: one number for each parameter.
        adamw: two moments for each of its parameters, and a counter of steps for each tensor.
        muon: one momentum for each of its parameters.
        adagrad: one sum for each row of the table of look-ups, whose gradient is not in
            ``gradients``: it has rows for the text's own n-grams only.
        average: the moving average of the weights.
    """

    weights: int
    gradients: int
    adamw: int
    muon: int
    adagrad: int
    average: int

    @property
    def optimiser(self) -> int:
        """State of all optimisers."""
        return self.adamw + self.muon + self.adagrad

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimiser + self.average


def training_state(model: ModelConfig, training: TrainingConfig) -> TrainingState:
    """Count the bytes that training ``model`` keeps from step to step, activations aside."""
    parameters = dense = adamw = muon = adagrad = 0
    for weights in list_weights(model):
        parameters += weights.parameters
        if weights.part == "lookups":
            adagrad += weights.shape[0] * _FLOAT32
            continue
        dense += weights.parameters
        if training.optimiser == "muon" and weights.in_block and len(weights.shape) == 2:
            muon += weights.parameters * _FLOAT32
        else:
            adamw += weights.copies * (2 * prod(weights.shape) + 1) * _FLOAT32
    return TrainingState(
        weights=parameters * _FLOAT32,
        gradients=dense * _FLOAT32,
        adamw=adamw,
        muon=muon,
        adagrad=adagrad,
        average=parameters * _FLOAT32 if training.ema else 0,
    )


@dataclass(frozen=True)
class CacheBytes:
    """Bytes of keys and values that a text of some length asks for, by layer and head.

    Attributes:
        stored: what some later token will read, and the cache must hold.
        read: what the step of the last token reads, its own key and value included.
        allocated: all slots of a cache that has room for so many tokens, used or not yet.
    """

    stored: PerHead
    read: PerHead
    allocated: PerHead


def cache_bytes(
    config: ModelConfig, T: int | None = None, *, batch: int = 1, element_bytes: int = _FLOAT32
) -> CacheBytes:
    """Count the bytes of the KV cache once ``T`` tokens have been through the model.

    The figures differ by the pattern: a strided head stores everything and reads one key in
    ``stride``; a local head reads one key more than it must store for the next step. Memory is
    taken once, for what any step may need: rows of residues of one length, a whole block, and twice
    what a ring and a region behind it both want, such as the own block's summary columns, which
    ``stored`` counts once.

    Args:
        config: the model.
        T: tokens so far; ``config.seq_len`` when not given.
        batch: texts that are generated together.
        element_bytes: bytes of a number: 4 for float32, 2 for bfloat16.

    Raises:
        UserError: ``T``, ``batch`` or ``element_bytes`` is below 1.
    """
    T = positions(config, T)
    require_count("batch", batch, "texts")
    require_count("element_bytes", element_bytes, "bytes")
    per_key = batch * element_bytes * (config.qk_width + config.n_embd) // config.n_head
    return CacheBytes(
        stored=for_each_head(config, lambda pattern: per_key * len(pattern.retained(T - 1))),
        read=for_each_head(config, lambda pattern: per_key * len(pattern.read_set(T - 1))),
        allocated=for_each_head(config, lambda pattern: per_key * count_slots(pattern, T).total),
    )
