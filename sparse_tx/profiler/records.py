"""What the profiler asks, and what it answers: plain values that JSON holds.

A ``Setting`` names one cost. ``Measurement`` is what a fresh process found for it, ``Prediction``
what accounting says; a ``Row`` sets the two side by side, and a ``Profile`` is everything that a
report shows.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from sparse_tx.config import ModelConfig, TrainingConfig

Work = Literal["attention", "forward", "train", "prefill", "decode"]
"""What is done once.

*attention*: forward and backward of one layer's attention without projections, as the mean over the
pattern's layers. *forward*: the model's loss without gradients. *train*: an optimiser step on one
batch, the optimiser's own work included; whether the recipe accumulates batches plays no part.
*prefill*: the logits after a prompt of ``seq_len`` tokens, the start symbol among them, read into a
cache of keys and values. *decode*: the step that makes a text as long, the rest in a cache."""

WORKS: tuple[Work, ...] = get_args(Work)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One thing whose cost is asked for.

    Attributes:
        work: what is done once.
        label: the pattern as the user wrote it, which may leave sizes to the length.
        model: the model; its ``pattern`` has all its sizes, its ``seq_len`` is the length, and
            ``recompute`` and ``engine`` are as asked.
        training: the batch size and the optimisers of a training step.
        device: ``cpu`` or ``cuda``.
    """

    work: Work
    label: str
    model: ModelConfig
    training: TrainingConfig
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the machine does at best, measured in the same run.

    Attributes:
        gemm_flops_per_s: of a large square matrix product, in the type that is computed in.
        copy_bytes_per_s: bytes read and written by a copy of a large array.
        fresh_bytes_per_s: bytes of memory fresh from the system that are written for the first
            time; infinite where an allocator of its own keeps memory, as on a GPU.
    """

    gemm_flops_per_s: float
    copy_bytes_per_s: float
    fresh_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What fresh processes found for one setting.

    Attributes:
        engine: the attention engine that ran.
        decoder: the decoder that generated, by the name of its class; empty where none did.
        seconds: of every timed round; empty if there was none.
        peak_bytes: the most memory held beyond what the process held before it made the model
            (on a CPU resident memory, on a GPU the allocator's); None if it was not measured.
            After a failure, the last that was seen.
        baseline_bytes: what the process held before it made the model.
        parts_s: seconds of each part of the work, of a round with clocks in it: names of parts as
            the model's modules, then ``.forward`` or ``.backward``.
        failure: what went wrong, in one sentence; None if nothing did.
    """

    engine: str = ""
    decoder: str = ""
    seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    baseline_bytes: int = 0
    parts_s: dict[str, float] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What accounting says of one setting, and, after calibration, of its time.

    Attributes:
        pairs: attended pairs of one sequence, over all layers and heads of the work; of decoding,
            the keys that the one query reads.
        dense_pairs: what dense causal attention would have.
        useful_flops: FLOPs of the work, attention charged for attended pairs; by part.
        nominal_flops: the same in the dense convention, T x T.
        peak_bytes: the most memory held, weights and optimiser state included.
        peak_parts: who holds it at that moment; they sum to ``peak_bytes``.
        cache_stored_bytes: keys and values that generation must hold after ``seq_len`` tokens.
        cache_read_bytes: those that the step of the last token reads.
        cache_allocated_bytes: memory that a cache takes for texts of up to ``seq_len`` tokens.
        parameters: of the model.
        seconds: of the work once; None without calibration or a stated rate.
        useful_tile_share: attended share of the 128-tiles that have any attended pair.
    """

    pairs: int
    dense_pairs: int
    useful_flops: dict[str, int]
    nominal_flops: dict[str, int]
    peak_bytes: int
    peak_parts: dict[str, int]
    cache_stored_bytes: int
    cache_read_bytes: int
    cache_allocated_bytes: int
    parameters: int
    seconds: float | None
    useful_tile_share: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting with all that is known of it.

    Attributes:
        setting: what was asked.
        prediction: what accounting says.
        measurement: what was measured; None if it was not.
        not_measured: why there is no measurement, such as ``"would take about 3 h"``; empty if
            there is one or none was asked for.
    """

    setting: Setting
    prediction: Prediction
    measurement: Measurement | None = None
    not_measured: str = ""


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """``quantity = coefficient * T ** exponent``, by least squares on logarithms.

    Attributes:
        label: the pattern as the user wrote it.
        work: of which the quantity is.
        recompute: whether blocks are recomputed.
        quantity: ``seconds``, ``peak_bytes`` or ``useful_flops``.
        exponent: the slope, with ``low`` and ``high`` the ends of its 95 % confidence interval.
        coefficient: the quantity at T = 1.
        lengths: the lengths of the fit.
        measured: whether the values were measured; else predicted.
    """

    label: str
    work: Work
    recompute: bool
    quantity: str
    exponent: float
    low: float
    high: float
    coefficient: float
    lengths: tuple[int, ...]
    measured: bool


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """From which length on a pattern costs less than dense.

    Attributes:
        label: the pattern.
        work: of which the quantity is.
        recompute: whether blocks are recomputed.
        quantity: ``seconds``, ``peak_bytes`` or ``useful_flops``.
        length: in tokens; None if it never does.
        how: between two lengths at which costs were ``"measured"``, ``"counted"`` (FLOPs) or
            ``"predicted"``; ``"below"``: at the shortest length of all already;
            ``"extrapolated"`` from the fits; ``"never"``.
    """

    label: str
    work: Work
    recompute: bool
    quantity: str
    length: int | None
    how: Literal["measured", "counted", "predicted", "below", "extrapolated", "never"]


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The longest sequence of a pattern at the cost that dense has at ``dense_len``.

    Attributes:
        label: the pattern.
        quantity: ``useful_flops``, ``seconds``, ``peak_bytes`` or ``weights_bytes``, of the
            attention of one layer.
        dense_len: dense attention's length, in tokens.
        budget: what dense costs there; None if that could not be measured.
        length: the longest length of the pattern within the budget; None without one.
        how: what stood against what, in words, or why there is no length.
        measured: whether both costs were measured.
    """

    label: str
    quantity: str
    dense_len: int
    budget: float | None
    length: int | None
    how: str
    measured: bool


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The longest sequence, or the largest batch, that memory has room for.

    Attributes:
        setting: at what was found.
        memory_bytes: the room.
        baseline_bytes: what the process holds before it makes a model.
        largest: ``"seq_len"`` or ``"batch_size"``.
        value: the largest one; 0 if nothing fits.
        peak_bytes: predicted there, baseline included.
        confirmation: one measured run at it, or None.
        not_confirmed: why it was not measured; empty if it was or was not asked for.
    """

    setting: Setting
    memory_bytes: int
    baseline_bytes: int
    largest: Literal["seq_len", "batch_size"]
    value: int
    peak_bytes: int
    confirmation: Measurement | None = None
    not_confirmed: str = ""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """All that a report shows.

    Attributes:
        title: what was profiled, in a line: the preset or checkpoint.
        provenance: command, commit, versions, machine, date.
        rows: one for each setting, in the order asked.
        ceilings: the machine's, None if nothing was measured.
        laws: fits over lengths.
        crossovers: where patterns overtake dense.
        reaches: lengths at equal cost.
        fits: what memory has room for.
        training_tokens: a training run's tokens whose total cost is reported; None if not asked.
    """

    title: str
    provenance: dict
    rows: tuple[Row, ...]
    ceilings: Ceilings | None = None
    laws: tuple[PowerLaw, ...] = ()
    crossovers: tuple[Crossover, ...] = ()
    reaches: tuple[Reach, ...] = ()
    fits: tuple[Fit, ...] = ()
    training_tokens: int | None = None
