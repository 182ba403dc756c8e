"""Whether memory has room for a training step, asked before the first one is taken."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from sparse_tx.accounting import training_state
from sparse_tx.config import RunConfig
from sparse_tx.errors import UserError
from sparse_tx.profiler.memory import free_bytes
from sparse_tx.profiler.predict import predict_peak
from sparse_tx.profiler.records import Setting
from sparse_tx.profiler.room import HEADROOM
from sparse_tx.profiler.settings import engine_of

# Flags that change a setting, and what it becomes by them.
_Way = tuple[str, Setting]


def require_room_for_step(config: RunConfig, device: str, *, resumes: bool = False) -> None:
    """Refuse a run whose training step takes more memory than there is.

    Nothing is refused where memory or the engine's needs are not known.

    Args:
        config: the run; its vocabulary is the tokenizer's.
        device: ``cpu`` or ``cuda``.
        resumes: whether the run goes on, so that batch and length are what they are.

    Raises:
        UserError: there is no room. The message has what the step takes, what there is, and what
            would fit. Or the engine cannot run.
    """
    try:
        free = free_bytes(device)
    except (OSError, KeyError):
        return
    setting = _setting(config, device)
    engine = engine_of(setting)
    if engine == "reference":
        return
    needed = _needed(setting, engine)
    room = int((1 - HEADROOM) * free)
    if needed <= room:
        return
    ways = [
        f"{flags} ({_gigabytes(_needed(other, engine))})"
        for kind in _ways_out(setting, resumes, images=bool(config.data.image_shape))
        for flags, other in islice(_fitting(kind, engine, room), 1)
    ]
    raise UserError(
        f"a training step takes {_gigabytes(needed)}"
        f"{' at least' if setting.training.precision != 'fp32' else ''}, as accounting has it, and"
        f" {_gigabytes(free)} of memory are free on the device {device}; "
        + (f"there is room with {' or with '.join(ways)}" if ways else "make the model smaller")
        + ". To go on all the same, add --ignore_memory"
    )


def _setting(config: RunConfig, device: str) -> Setting:
    return Setting(
        work="train",
        label=config.model.pattern,
        model=config.model,
        training=config.training,
        device=device,
    )


def _needed(setting: Setting, engine: str) -> int:
    """Bytes that a step takes; with mixed types, under bf16 or fp16, those it takes at least."""
    peak = predict_peak(setting, engine).total
    if setting.training.precision == "fp32":
        return peak
    state = min(peak, training_state(setting.model, setting.training).total)
    return state + (peak - state) // 2


def _fitting(ways: Iterable[_Way], engine: str, room: int) -> Iterator[_Way]:
    return (way for way in ways if _needed(way[1], engine) <= room)


def _ways_out(setting: Setting, resumes: bool, images: bool) -> Iterator[Iterator[_Way]]:
    """Ways to a smaller step, kind by kind; of each kind, the one that changes least first."""
    yield _computed_again(setting)
    if not resumes:
        yield _in_parts(setting)
        if not images:  # a sequence is as long as an image
            yield _shorter(setting)


def _computed_again(setting: Setting) -> Iterator[_Way]:
    model = setting.model
    if not model.recomputes:
        yield "--recompute true", replace(setting, model=replace(model, recompute=True))
    one_head = replace(model, head_chunk=1)
    yield "--head_chunk 1", replace(setting, model=one_head)
    rounded = replace(one_head, stored_precision="bf16")
    yield "--head_chunk 1 --stored_precision bf16", replace(setting, model=rounded)


def _in_parts(setting: Setting) -> Iterator[_Way]:
    training = setting.training
    for parts in range(2, training.batch_size + 1):
        if training.batch_size % parts == 0:
            size, times = training.batch_size // parts, training.accumulation * parts
            smaller = replace(training, batch_size=size, accumulation=times)
            yield f"--batch_size {size} --accumulation {times}", replace(setting, training=smaller)


def _shorter(setting: Setting) -> Iterator[_Way]:
    T = setting.model.seq_len // 2
    while T:
        yield f"--seq_len {T}", replace(setting, model=replace(setting.model, seq_len=T))
        T //= 2


def _gigabytes(n: int) -> str:
    return f"{n / 1e9:.3g} GB"
