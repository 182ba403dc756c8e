"""Which attention engines can be audited where a model is, and how to have it use one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from sparse_tx.attention import resolve_engine, sparse_attention
from sparse_tx.attention.api import ENGINES
from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError
from sparse_tx.model import GPT
from sparse_tx.patterns import Dense


def choose_engines(model: GPT, wanted: str) -> tuple[list[str], dict[str, str]]:
    """The engines to audit, and those that cannot run here, each with the reason.

    Args:
        model: where it will compute, in the type of its weights.
        wanted: ``all`` that can run, the one that ``auto`` takes first; or names between commas,
            of which ``auto`` is one.

    Raises:
        UserError: a name is unknown, or that engine cannot run here.
    """
    inputs = _inputs(model)
    if wanted == "all":
        best, _ = resolve_engine("auto", **inputs)
        reasons = {name: why_not(model, name) for name in ENGINES}
        able = [name for name, reason in reasons.items() if reason is None and name != best]
        return [best, *able], {name: reason for name, reason in reasons.items() if reason}
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not names:
        raise UserError(
            f"engines is '{wanted}'; write all, auto, or names between commas: {', '.join(ENGINES)}"
        )
    return list(dict.fromkeys(resolve_engine(name, **inputs)[0] for name in names)), {}


def why_not(model: GPT, engine: str, dtype: torch.dtype | None = None) -> str | None:
    """Why an engine cannot run on a model's heads, in its own type or another; None if it can."""
    inputs = _inputs(model) | ({"dtype": dtype} if dtype else {})
    return ENGINES[engine].why_not(*inputs.values())


def why_no_gradients(model: GPT, engine: str) -> str | None:
    """Why an engine has no backward pass where a model is; None if it has one."""
    inputs = _inputs(model)
    numbers = {"device": inputs["device"], "dtype": inputs["dtype"], "requires_grad": True}
    q, k = (torch.ones(1, 1, 2, inputs["D"], **numbers) for _ in range(2))
    v = torch.ones(1, 1, 2, inputs["D_v"], **numbers)
    try:
        sparse_attention(q, k, v, Dense(), engine=engine)
    except UserError as error:
        return str(error)
    return None


@contextmanager
def computing_by(model: GPT, engine: str) -> Iterator[None]:
    """Have a model use an engine for a while, and keep its blocks instead of recomputing them."""
    owners = [m for m in model.modules() if isinstance(getattr(m, "config", None), ModelConfig)]
    before = [owner.config for owner in owners]
    for owner in owners:
        owner.config = replace(owner.config, engine=engine, recompute=False)
    try:
        yield
    finally:
        for owner, config in zip(owners, before, strict=True):
            owner.config = config


def _inputs(model: GPT) -> dict:
    """What ``resolve_engine`` and an engine's ``why_not`` are asked about, in their order."""
    weight, H = model.token_embedding.weight, model.config.n_head
    return {
        "device": weight.device,
        "dtype": weight.dtype,
        "D": model.config.qk_width // H,
        "D_v": model.config.n_embd // H,
        "heads": tuple(p for block in model.blocks for p in block.attention.layer.heads(H)),
    }
