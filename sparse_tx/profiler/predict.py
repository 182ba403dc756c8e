"""What accounting says of a setting: pairs, FLOPs, bytes."""

from dataclasses import replace
from functools import lru_cache

from sparse_tx.accounting import (
    PeakMemory,
    Tiling,
    Workspace,
    attended_pairs,
    attention_peak,
    cache_bytes,
    count_parameters,
    decoding_flops,
    decoding_peak,
    inference_peak,
    keys_of_last,
    model_in_prefill,
    nominal_flops,
    prefill_flops,
    prefill_peak,
    tiles_in_columns,
    tiles_in_place,
    training_peak,
    useful_flops,
)
from sparse_tx.attention import workspace_bytes
from sparse_tx.config import ModelConfig
from sparse_tx.model.precision import dtype_of
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
    cache = cache_bytes(setting.model, **_of_cache(setting))
    peak = predict_peak(setting, engine)
    of_head = model.seq_len if setting.work == "decode" else Dense().count_pairs(model.seq_len)
    dense = of_head * model.n_head * model.n_layer
    return Prediction(
        pairs=pairs_of_work(setting),
        dense_pairs=dense // _layers_averaged(setting),
        useful_flops=flops_of_work(setting),
        nominal_flops=_flops_by_part(setting, nominal=True),
        peak_bytes=peak.total,
        peak_parts=peak.parts,
        cache_stored_bytes=cache.stored.total,
        cache_read_bytes=cache.read.total,
        cache_allocated_bytes=cache.allocated.total,
        parameters=count_parameters(setting.model).total,
        seconds=seconds,
        useful_tile_share=_useful_tile_share(model),
    )


def predict_peak(setting: Setting, engine: str) -> PeakMemory:
    """The most bytes that ``setting`` holds beyond what the process held before, by who holds them.

    Arguments and errors as of ``predict``.
    """
    if setting.work == "decode":
        by_torch = not _decodes_natively(setting, engine)
        return decoding_peak(setting.model, **_of_cache(setting), gathers=by_torch)
    # Prompts are read one after the other.
    batch = 1 if setting.work == "prefill" else setting.training.batch_size
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
        case "prefill":
            return prefill_peak(model, **_of_cache(setting), workspaces=workspaces)
        case "decode":
            return decoding_peak(model, **_of_cache(setting))


def _of_cache(setting: Setting) -> dict[str, int]:
    """How many texts a cache holds, and in numbers of how many bytes."""
    precision, batch = setting.training.precision, setting.training.batch_size
    return dict(batch=batch, element_bytes=dtype_of(precision).itemsize)


def _decodes_natively(setting: Setting, engine: str) -> bool:
    """Whether generation takes its steps by its native kernel, if that knows the patterns."""
    return (setting.device, engine, setting.training.precision) == ("cpu", "cpu", "fp32")


def pairs_of_work(setting: Setting) -> int:
    """Attended pairs of one sequence, over the layers and heads that the work goes through."""
    if setting.work == "decode":
        return keys_of_last(setting.model).total
    return attended_pairs(counted_model(setting)).total // _layers_averaged(setting)


def flops_of_work(setting: Setting) -> dict[str, int]:
    """Useful FLOPs of the setting's work once, by part; parts without any are left out."""
    return _flops_by_part(setting, nominal=False)


def work_flops(setting: Setting) -> int:
    """Useful FLOPs of the setting's work once."""
    return sum(flops_of_work(setting).values())


def counted_model(setting: Setting) -> ModelConfig:
    """The model as the work goes through its layers: for attention alone, one round of them."""
    if setting.work == "prefill":
        return model_in_prefill(setting.model)
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


def _flops_by_part(setting: Setting, *, nominal: bool) -> dict[str, int]:
    """Useful or nominal FLOPs of the setting's work once, by part."""
    model, batch = counted_model(setting), setting.training.batch_size
    match setting.work:
        case "prefill":
            flops = prefill_flops(model, batch=batch, nominal=nominal)
        case "decode":
            flops = decoding_flops(model, batch=batch, nominal=nominal)
        case _:
            flops = (nominal_flops if nominal else useful_flops)(model, batch=batch)
    if setting.work == "attention":
        layers = _layers_averaged(setting)
        return {name: flops.parts[name].total // layers for name in ("scores", "values")}
    if setting.work == "train":
        return {name: passes.total for name, passes in flops.parts.items() if passes.total}
    return {name: passes.forward for name, passes in flops.parts.items() if passes.forward}


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
    first, *others = pattern.parts
    if isinstance(first, Strided) and not others:
        return tiles_in_columns(first, T, TILE_SIZE)
    return tiles_in_place(pattern, T, TILE_SIZE)
