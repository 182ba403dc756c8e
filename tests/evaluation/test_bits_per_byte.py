"""Bits per byte against the plain definition."""

from math import log2

import numpy as np
import pytest
import torch

from sparse_tx.config import ModelConfig
from sparse_tx.evaluation import score
from sparse_tx.model import GPT

ONE_BYTE = np.ones(17, dtype=np.int64)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = GPT(
        ModelConfig(
            vocab_size=17, seq_len=13, n_layer=2, n_head=2, n_embd=8, pattern="local:3", dropout=0.5
        )
    )
    torch.nn.init.normal_(model.head.weight)
    return model


def draw_text(n, seed=0):
    return np.random.default_rng(seed).integers(0, 17, n).astype(np.uint8)


def bits_by_definition(model, tokens, seq_len):
    """Each token alone, from the start symbol and the tokens of its window before it."""
    model.eval()
    bits = []
    for t in range(len(tokens)):
        begin = t // seq_len * seq_len
        before = [17, *tokens[begin:t].tolist()]
        with torch.no_grad():
            probabilities = model(torch.tensor([before]))[0, -1].softmax(-1)
        bits.append(-log2(probabilities[tokens[t]].item()))
    return sum(bits)


@pytest.mark.parametrize("n", [1, 12, 13, 14, 100])
@pytest.mark.parametrize("tokens_at_once", [1, 30, 10_000])
def test_every_token_counts_once(model, n, tokens_at_once):
    tokens = draw_text(n)
    result = score(model, tokens, ONE_BYTE, tokens_at_once=tokens_at_once)
    assert (result.tokens, result.bytes) == (n, n)
    assert result.bpb * n == pytest.approx(bits_by_definition(model, tokens, 13), rel=1e-5)


def test_bytes_are_what_tokens_stand_for(model):
    lengths = np.arange(1, 18)
    tokens = draw_text(50)
    result = score(model, tokens, lengths)
    assert result.bytes == lengths[tokens].sum()
    same_loss = score(model, tokens, ONE_BYTE)
    assert result.bpb == pytest.approx(same_loss.bpb * 50 / result.bytes)


def test_a_limit_takes_whole_tokens_from_the_beginning(model):
    lengths = np.full(17, 3)
    tokens = draw_text(50)
    result = score(model, tokens, lengths, max_bytes=61)
    assert (result.tokens, result.bytes) == (20, 60)
    assert result.nats == pytest.approx(score(model, tokens[:20], lengths).nats)
    assert "the first 60 bytes" in result.protocol


def test_dropout_is_off_and_the_mode_restored(model):
    model.train()
    first, second = (score(model, draw_text(40), ONE_BYTE).nats for _ in range(2))
    assert first == second
    assert model.training


def test_nothing_to_score_and_broken_weights_are_refused(model):
    with pytest.raises(ValueError, match="no whole token to score"):
        score(model, draw_text(5), np.full(17, 9), max_bytes=8)
    model.head.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        score(model, draw_text(5), ONE_BYTE)


@pytest.mark.parametrize("first", [1, 25, 26, 51, 52, 60, 99, 100])
def test_a_longer_scoring_goes_on_where_a_shorter_one_ended(model, first, monkeypatch):
    tokens = draw_text(100)
    whole = score(model, tokens, ONE_BYTE, tokens_at_once=26)
    begun = score(model, tokens, ONE_BYTE, tokens_at_once=26, max_bytes=first)
    calls = []
    result = score(
        model,
        tokens,
        ONE_BYTE,
        tokens_at_once=26,
        begun=begun,
        on_progress=lambda done, total: calls.append(done),
    )
    assert result == whole  # to the bit
    assert calls == [done for done in (26, 52, 78, 91, 100) if done > first // 26 * 26]
    shorter = score(model, tokens, ONE_BYTE, tokens_at_once=26, max_bytes=20, begun=whole)
    assert shorter == score(model, tokens, ONE_BYTE, tokens_at_once=26, max_bytes=20)


def test_when_time_is_up_whole_batches_are_scored(model):
    tokens = draw_text(100)
    answers = iter([False, True])
    result = score(model, tokens, ONE_BYTE, tokens_at_once=26, is_time_up=lambda: next(answers))
    assert (result.tokens, result.bytes, result.complete) == (52, 52, False)
    assert result.nats == score(model, tokens, ONE_BYTE, tokens_at_once=26, max_bytes=52).nats
    assert score(model, tokens[:52], ONE_BYTE, is_time_up=lambda: True).complete
