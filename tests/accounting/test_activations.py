"""Predicted peaks against every allocation that torch makes in a real step."""

from dataclasses import replace

import pytest
import torch

from sparse_tx.accounting import inference_peak, training_peak
from sparse_tx.accounting import ledger as ledger_module
from sparse_tx.accounting.ledger import Ledger
from sparse_tx.config import ModelConfig, TrainingConfig
from sparse_tx.errors import UserError
from sparse_tx.model import GPT
from sparse_tx.training.optimiser import clip_gradients, make_optimisers
from tests.accounting.allocations import (
    KEPT,
    MODERN,
    allocated_peak,
    draw,
    make_config,
    workspaces,
)


def step_peaks(config: ModelConfig, training: TrainingConfig) -> tuple[int, int]:
    """Predicted and allocated bytes of one training step, without what is kept between steps."""
    torch.manual_seed(0)
    model = GPT(config)
    optimisers = make_optimisers(model, training)
    tokens, targets = (draw(config, training.batch_size) for _ in range(2))

    def step():
        model.loss(tokens, targets).div(tokens.numel()).backward()
        clip_gradients(model, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        model.zero_grad(set_to_none=True)

    engine = workspaces(config, training.batch_size)
    parts = training_peak(config, training, workspaces=engine).parts
    predicted = sum(size for part, size in parts.items() if part not in KEPT)
    return predicted - 16 * tokens.numel(), allocated_peak(step)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        MODERN,
        dict(activation="swiglu", norm="rmsnorm", position="table"),
        dict(activation="swiglu", dropout=0.1),
        dict(activation="gelu", dropout=0.1, qk_norm=True, position="none"),
        dict(activation="relu2", tie_embeddings=True, n_qk=36, n_ff=97, position="rope"),
        dict(activation="relu2", bias=False, position="grid+rope", qk_norm=True, recent_tokens=4),
        MODERN | dict(norm="rmsnorm", bias=True, n_layer=7),
        MODERN | dict(seq_len=3011, chunk=900),
        dict(activation="swiglu", seq_len=3011, chunk=900, dropout=0.1),
        MODERN | dict(pattern="fixed:31:5,dense", engine="views"),
        MODERN | dict(ngrams=(3, 5, 6), ngram_rows=5_000_021),
    ],
    ids=str,
)
def test_a_training_step_allocates_what_is_predicted(settings, recompute):
    config = make_config(recompute=recompute, **settings)
    predicted, allocated = step_peaks(config, TrainingConfig(max_steps=1))
    assert predicted == pytest.approx(allocated, rel=3e-3)


def test_rows_that_are_read_again_take_no_more_than_predicted():
    settings = MODERN | dict(n_layer=1, ngrams=tuple(range(1, 21)), ngram_rows=300)
    config = make_config(**settings)
    predicted, allocated = step_peaks(config, TrainingConfig(max_steps=1))
    rows = config.seq_len * config.lookups_per_token
    gradients = rows * (config.n_embd * 4 + 8)
    assert allocated < predicted < allocated + 2 * gradients


@pytest.mark.parametrize("stored_precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [
        dict(head_chunk=1),
        MODERN | dict(head_chunk=2),
        MODERN | dict(head_chunk=1, n_head=3, n_layer=5),
        MODERN | dict(head_chunk=2, norm="rmsnorm", bias=True, n_head=3),
        dict(activation="swiglu", dropout=0.1, head_chunk=1, position="none", qk_norm=True),
        dict(tie_embeddings=True, n_qk=36, n_ff=97, position="rope", head_chunk=1, norm="rmsnorm"),
        MODERN | dict(pattern="fixed:31:5,dense", head_chunk=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("chunk", [401, 10_000])
def test_long_blocks_allocate_what_is_predicted(settings, stored_precision, chunk):
    longer = dict(seq_len=3011, chunk=chunk, stored_precision=stored_precision)
    config = make_config(engine="cpu", **settings, **longer)
    predicted, allocated = step_peaks(config, TrainingConfig(max_steps=1))
    assert predicted == pytest.approx(allocated, rel=3e-3)


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(recompute=True),
        dict(head_chunk=1, chunk=900, engine="cpu"),
        dict(head_chunk=1, chunk=900, engine="cpu", norm="rmsnorm", stored_precision="bf16"),
    ],
    ids=str,
)
def test_batches(settings):
    training = TrainingConfig(max_steps=1, batch_size=3)
    predicted, allocated = step_peaks(make_config(**MODERN | settings), training)
    assert predicted == pytest.approx(allocated, rel=1e-3)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
@pytest.mark.parametrize("width", [96, 202])
def test_a_short_text_is_ruled_by_the_weights(optimiser, width):
    config = make_config(seq_len=13, n_embd=width, bias=False)
    predicted, allocated = step_peaks(config, TrainingConfig(max_steps=1, optimiser=optimiser))
    assert predicted == pytest.approx(allocated, rel=0.01)  # vectors of the width are left out


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        MODERN,
        dict(norm="rmsnorm", chunk=900),
        MODERN | dict(head_chunk=1, chunk=900, stored_precision="bf16"),
    ],
    ids=str,
)
def test_inference_allocates_what_is_predicted(settings):
    config = make_config(dropout=0.1, recompute=True, **settings)
    model = GPT(config).eval()
    tokens = draw(config, 2)

    @torch.no_grad()
    def run():
        model.loss(tokens, tokens)

    parts = inference_peak(config, batch=2).parts
    predicted = sum(size for part, size in parts.items() if part not in KEPT)
    given = 16 * tokens.numel()
    assert predicted - given == pytest.approx(allocated_peak(run), rel=2e-3)


def test_recomputation_keeps_one_tensor_of_a_block():
    config = make_config(n_layer=20, n_embd=64)
    training = TrainingConfig(max_steps=1)
    kept, recomputed = (
        training_peak(replace(config, recompute=value), training).total for value in (False, True)
    )
    one_more = training_peak(replace(config, recompute=True, n_layer=21), training)
    state = sum(
        size
        for part, size in training_peak(replace(config, n_layer=21), training).parts.items()
        if part in KEPT
    )
    assert recomputed < kept / 4
    assert one_more.total - recomputed < 4 * 64 * config.seq_len + state / 10


def test_parts_sum_to_the_peak():
    peak = training_peak(make_config(), TrainingConfig(max_steps=1))
    assert peak.total == sum(peak.parts.values())
    assert all(size > 0 for size in peak.parts.values())


def test_the_length_need_not_be_the_models():
    config = make_config(position="rope")
    training = TrainingConfig(max_steps=1)
    longer = replace(config, seq_len=2048)
    assert training_peak(config, training, 2048) == training_peak(longer, training)
    with pytest.raises(UserError, match="T is 0"):
        training_peak(config, training, 0)


def test_the_ledger_remembers_its_highest_moment():
    ledger = Ledger()
    a = ledger.take("a", 5)
    b = ledger.take("b", 7)
    ledger.give(a)
    ledger.take("a", 2)
    ledger.give(b)
    assert (ledger.peak, ledger.at_peak, ledger.total) == (12, {"a": 5, "b": 7}, 2)


def test_what_stands_for_several_is_taken_as_often(monkeypatch):
    monkeypatch.setattr(ledger_module, "LARGE", 4)
    ledger = Ledger()
    ledger.take("a", 5)
    ledger.times = 3
    ledger.take("b", 7)
    ledger.take("b", 4)
    assert (ledger.taken_large, ledger.total) == (5 + 3 * 7, 16)
