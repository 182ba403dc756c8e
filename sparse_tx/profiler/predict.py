"""What accounting says of a setting: pairs, FLOPs, bytes."""

from dataclasses import replace
from functools import lru_cache

from sparse_tx.accounting import (
    Flops,
    PeakMemory,
    Tiling,
    Workspace,
    attended_pairs,
    attention_peak,
    cache_bytes,
    count_parameters,
    inference_peak,
    nominal_flops,
    tiles_in_columns,
    tiles_in_place,
    training_peak,
    useful_flops,
)
from sparse_tx.attention import workspace_bytes
from sparse_tx.config import ModelConfig
from sparse_tx.patterns import Dense, Pattern, Strided
from sparse_tx.profiler.records import Prediction, Setting

# The tiles that FlexAttention and most kernels work in.
TILE_SIZE = 128


def predict(setting: Setting, engine: str, *, seconds: float | None = None) -> Prediction:
    """Predict what ``setting`` costs, its time aside.

    Args:
        setting: what is asked.
        engine: the attention engine that will run, not ``auto``.
        seconds: the time, where something else has predicted it.

    Raises:
        UserError: the memory of ``engine`` is not known.
    """
    model = counted_model(setting)
    batch = setting.training.batch_size
    cache = cache_bytes(setting.model, batch=batch)
    peak = predict_peak(setting, engine)
    dense = Dense().count_pairs(model.seq_len) * model.n_head * model.n_layer
    return Prediction(
        pairs=pairs_of_work(setting),
        dense_pairs=dense // _layers_averaged(setting),
        useful_flops=flops_of_work(setting),
        nominal_flops=_of_work(nominal_flops(model, batch=batch), setting),
        peak_bytes=peak.total,
        peak_parts=peak.parts,
        cache_stored_bytes=cache.stored.total,
        cache_read_bytes=cache.read.total,
        parameters=count_parameters(setting.model).total,
        seconds=seconds,
        useful_tile_share=_useful_tile_share(model),
    )


def predict_peak(setting: Setting, engine: str) -> PeakMemory:
    """The most bytes that ``setting`` holds beyond what the process held before, by who holds them.

    Arguments and errors as of ``predict``.
    """
    batch = setting.training.batch_size
    return _peak(setting, _workspaces(counted_model(setting), engine, batch))


def bytes_within(setting: Setting, engine: str, limit: float) -> int:
    """The total of ``predict_peak`` if that is within ``limit``; else some number beyond ``limit``.

    For searches, which try many settings that are too large: what an engine's workspace takes is
    found only for those that are within the limit without it.
    """
    without_engine = _peak(setting, ()).total
    return without_engine if without_engine > limit else predict_peak(setting, engine).total


def _peak(setting: Setting, workspaces: tuple[Workspace, ...]) -> PeakMemory:
    model, batch = setting.model, setting.training.batch_size
    match setting.work:
        case "train":
            return training_peak(model, setting.training, workspaces=workspaces)
        case "attention":
            return attention_peak(model, batch=batch, workspaces=workspaces)
        case "forward":
            return inference_peak(model, batch=batch, workspaces=workspaces)
    return inference_peak(model, batch=batch, last_only=True, workspaces=workspaces)


def pairs_of_work(setting: Setting) -> int:
    """Attended pairs of one sequence, over the layers and heads that the work goes through."""
    return attended_pairs(counted_model(setting)).total // _layers_averaged(setting)


def flops_of_work(setting: Setting) -> dict[str, int]:
    """Useful FLOPs of the setting's work once, by part; parts without any are left out."""
    flops = useful_flops(counted_model(setting), batch=setting.training.batch_size)
    return _of_work(flops, setting)


def work_flops(setting: Setting) -> int:
    """Useful FLOPs of the setting's work once."""
    return sum(flops_of_work(setting).values())


def counted_model(setting: Setting) -> ModelConfig:
    """The model whose layers the work goes through: for attention alone, one round of them."""
    if setting.work != "attention":
        return setting.model
    return replace(
        setting.model,
        n_layer=len(setting.model.stack.layers),
        recompute=False,
        head_chunk=None,
        stored_precision="fp32",
    )


def _layers_averaged(setting: Setting) -> int:
    """Over how many layers the work is a mean; 1 where it is that of the whole model."""
    return len(setting.model.stack.layers) if setting.work == "attention" else 1


def _of_work(flops: Flops, setting: Setting) -> dict[str, int]:
    """By part, what the work takes of a training pass's FLOPs."""
    if setting.work == "attention":
        layers = _layers_averaged(setting)
        return {name: flops.parts[name].total // layers for name in ("scores", "values")}
    if setting.work == "train":
        return {name: passes.total for name, passes in flops.parts.items() if passes.total}
    found = {name: passes.forward for name, passes in flops.parts.items() if passes.forward}
    if setting.work != "forward":
        found["head"] //= setting.model.seq_len  # of the last token alone
    return found


def _workspaces(model: ModelConfig, engine: str, batch: int) -> tuple[Workspace, ...]:
    H = model.n_head
    sizes = dict(B=batch, T=model.seq_len, D=model.qk_width // H, D_v=model.n_embd // H)
    found = []
    for layer in model.stack.layers:
        patterns = layer.heads(H)
        groups = {patterns[heads.start : heads.stop] for heads in model.head_groups}
        each = [workspace_bytes(engine, group, **sizes) for group in groups]
        forward, backward = map(max, zip(*each, strict=True))
        found.append(Workspace(forward=forward, backward=backward))
    return tuple(found)


def _useful_tile_share(model: ModelConfig) -> float:
    """The attended share of the live tiles over all layers; strided heads in their columns."""
    pairs = area = 0
    for number in range(model.n_layer):
        for head in model.stack.layer(number).heads(model.n_head):
            tiling = _tiling(head, model.seq_len)
            pairs += tiling.pairs
            area += tiling.live * tiling.tile_size**2
    return pairs / max(1, area)


@lru_cache(maxsize=256)
def _tiling(pattern: Pattern, T: int) -> Tiling:
    if isinstance(pattern, Strided):
        return tiles_in_columns(pattern, T, TILE_SIZE)
    return tiles_in_place(pattern, T, TILE_SIZE)
