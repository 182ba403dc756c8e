"""What torch allocates while something runs, and models whose every size can be told apart."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from sparse_tx.accounting import Workspace
from sparse_tx.attention import workspace_bytes
from sparse_tx.config import ModelConfig

# What stays from step to step, so that it is no allocation of the step.
KEPT = ("weights", "optimiser state", "averaged weights", "rotary table")
MODERN = dict(
    position="rope",
    qk_norm=True,
    activation="relu2",
    bias=False,
    recent_tokens=4,
    init="zero-out",
)


def make_config(**settings) -> ModelConfig:
    defaults = dict(
        vocab_size=101, seq_len=1031, n_layer=3, n_head=2, n_embd=60, pattern="local:7,strided:7"
    )
    return ModelConfig(**defaults | settings)


def draw(config: ModelConfig, batch: int) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (batch, config.seq_len))


def allocated_peak(run: Callable, before: Callable = lambda: None) -> int:
    """The most bytes that torch's allocator gave out at one time while ``run()`` ran.

    It runs once more, first, to make whatever is made once and kept; then comes ``before()``.
    """
    run()
    before()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def workspaces(config: ModelConfig, batch: int) -> tuple[Workspace, ...]:
    """Those of the engine that ``config`` names; none for ``auto``, which is ``cpu``."""
    if config.engine == "auto":
        return ()
    H = config.n_head
    sizes = dict(B=batch, T=config.seq_len, D=config.qk_width // H, D_v=config.n_embd // H)
    found = []
    for layer in config.stack.layers:
        groups = [layer.heads(H)[heads.start : heads.stop] for heads in config.head_groups]
        each = [workspace_bytes(config.engine, group, **sizes) for group in groups]
        forward, backward = map(max, zip(*each, strict=True))
        found.append(Workspace(forward=forward, backward=backward))
    return tuple(found)
