"""Costs of whole runs."""

import pytest
import yaml

from sparse_tx.accounting import nominal_flops, training_cost, useful_flops
from sparse_tx.config import ModelConfig, RunConfig, TrainingConfig, preset_text
from sparse_tx.errors import UserError

MODEL = ModelConfig(seq_len=100, pattern="local:7,strided:5", chunk=150)
TRAINING = TrainingConfig(max_steps=11, batch_size=2, accumulation=3)


def test_a_run_is_its_passes():
    cost = training_cost(MODEL, TRAINING)
    assert (cost.steps, cost.tokens) == (11, 11 * 2 * 3 * 100)
    assert cost.useful == useful_flops(MODEL, batch=2) * 33
    assert cost.nominal == nominal_flops(MODEL, batch=2) * 33
    assert cost.useful.without_recompute == useful_flops(MODEL).without_recompute * 66


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (600, 1), (601, 2), (6600, 11)])
def test_tokens_are_rounded_up_to_whole_steps(tokens, steps):
    cost = training_cost(MODEL, TRAINING, tokens=tokens)
    assert (cost.steps, cost.tokens) == (steps, steps * 600)


def test_the_papers_text_model_trains_80_epochs_of_90_megabytes():
    run = RunConfig.from_flat(yaml.safe_load(preset_text("enwik8-paper")))
    cost = training_cost(run.model, run.training)
    assert cost.tokens == pytest.approx(80 * 90e6, rel=1e-3)
    # Recomputed blocks run forward once more: a third of the work above the head, nearly.
    assert 1.3 < cost.useful.total / cost.useful.without_recompute < 4 / 3


def test_no_length():
    with pytest.raises(UserError, match="tokens is 0; it must be a whole number of tokens"):
        training_cost(MODEL, TRAINING, tokens=0)
    with pytest.raises(UserError, match="give its length by tokens="):
        training_cost(MODEL, TrainingConfig(max_minutes=1.0))
