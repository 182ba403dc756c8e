"""The peak memory of a pass through the model: the highest moment of a ledger of its tensors."""

from dataclasses import dataclass, replace

from sparse_tx.accounting.forward_pass import (
    ACTIVATION_GRADIENTS,
    ATTENTION,
    FLOAT,
    INPUTS,
    INT64,
    TOKENS,
    WORKSPACE,
    ForwardPass,
    Workspace,
)
from sparse_tx.accounting.long_blocks import LongPass
from sparse_tx.accounting.memory import training_state
from sparse_tx.accounting.parameters import list_weights
from sparse_tx.config import ModelConfig, TrainingConfig


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
        workspaces: of the attention engine, layer after layer, tiled over the depth, each for the
            heads that it takes at a time; none if empty.

    Raises:
        UserError: ``T`` is below 1.
    """
    run = LongPass(model, T, training.batch_size, workspaces)
    state = training_state(model, training)
    for part, size in (
        ("weights", state.weights),
        ("optimiser state", state.optimiser),
        ("averaged weights", state.average),
        (TOKENS, 2 * run.N * INT64),  # inputs and targets
    ):
        run.ledger.take(part, size)
    run.rotary_table()
    before = run.ledger.taken_large
    run.backward(*run.forward(keep=True))
    if training.optimiser == "muon":
        run.muon_step()
    run.lookups_step()
    return PeakMemory(parts=run.ledger.at_peak, fresh_bytes=run.ledger.taken_large - before)


def inference_peak(
    model: ModelConfig,
    T: int | None = None,
    *,
    batch: int = 1,
    workspaces: tuple[Workspace, ...] = (),
) -> PeakMemory:
    """Count the most bytes that a forward pass without gradients holds, in float32.

    It is the first one of its length: rotary turns are computed in it.

    Args:
        model: the model.
        T: tokens of a sequence; ``model.seq_len`` when not given.
        batch: sequences.
        workspaces: as of ``training_peak``.

    Raises:
        UserError: ``T`` or ``batch`` is below 1.
    """
    run = LongPass(replace(model, dropout=0.0), T, batch, workspaces)
    run.ledger.take("weights", sum(w.parameters for w in list_weights(model)) * FLOAT)
    run.ledger.take(TOKENS, 2 * run.N * INT64)  # inputs and targets
    run.rotary_table()
    run.table_is_new = True
    before = run.ledger.taken_large
    run.forward(keep=False)
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
    run = ForwardPass(model, T, batch, workspaces)
    C, Q = model.n_embd, model.qk_width
    copied = model.qk_norm or model.rotates
    run.rows(INPUTS, 2 * Q + C + (2 * Q if copied else 0) + C)  # with the gradient of the output
    run.rows(ATTENTION, C + model.n_head)
    run.rows(ACTIVATION_GRADIENTS, C + 2 * Q + model.n_head)
    run.ledger.take(WORKSPACE, max(workspace.backward for workspace in run.workspaces))
    return PeakMemory(parts=run.ledger.at_peak)
