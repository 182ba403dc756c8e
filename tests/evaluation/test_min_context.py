"""Bits per byte at minimum contexts against a loop of a few lines, one window at a time."""

from math import log

import numpy as np
import pytest
import torch

from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError
from sparse_tx.evaluation import NotFinite, TrainedModel, evaluate, plan_windows, score
from sparse_tx.model import GPT

V, T = 17, 13
ONE_BYTE = np.ones(V, np.int64)
# Texts of one token, shorter than a window, of whole windows, and with tails of many lengths.
LENGTHS = (1, 2, 7, 12, 13, 14, 26, 37, 100)
MIN_CONTEXTS = (0, 1, 5, 8, 12)


def make_model(dtype=torch.float64, **settings):
    torch.manual_seed(0)
    config = dict(
        vocab_size=V,
        seq_len=T,
        n_layer=2,
        n_head=2,
        n_embd=10,
        pattern="local:3,strided:4",
        dropout=0.5,
        engine="reference",
    )
    model = GPT(ModelConfig(**config | settings))
    torch.nn.init.normal_(model.head_weight)
    return model.to(dtype).eval()


def draw_text(n, seed=0):
    return np.random.default_rng(seed).integers(0, V, n).astype(np.uint8)


def find(model, tokens, min_contexts, lengths=ONE_BYTE, **attributes):
    """The evaluation of a text in which each id stands for as many bytes as ``lengths`` says."""
    subject = TrainedModel(model)
    vars(subject).update(attributes)
    n_scored = len(tokens) - (subject.start_token is None)
    plan = plan_windows(n_scored, subject.seq_len, min_contexts)
    return evaluate(subject, tokens, lengths[tokens], plan)


def by_definition(model, tokens, min_context, seq_len=T, before=None):
    """The loss of every token in nats, window by window.

    ``before`` is the token before the text; the start symbol stands before every window if there is
    none, and otherwise what stands there.
    """
    losses, start = [], 0
    while len(losses) < len(tokens):
        window = tokens[start : start + seq_len].tolist()
        first = V if before is None else [before, *tokens.tolist()][start]
        with torch.no_grad():
            logits = model(torch.tensor([[first, *window[:-1]]]))[0]
        for place in range(len(losses) - start, len(window)):
            assert start == 0 or place >= min_context
            losses.append(-logits[place].log_softmax(-1)[window[place]].item())
        start += seq_len - min_context
    return losses


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("tokens_at_once", [1, 30, 10_000])
def test_all_protocols_at_once_equal_the_definition(n, tokens_at_once):
    model, tokens = make_model(), draw_text(n)
    found = find(model, tokens, MIN_CONTEXTS, tokens_at_once=tokens_at_once)
    assert [score.windows.min_context for score in found.scores] == list(MIN_CONTEXTS)
    for result, min_context in zip(found.scores, MIN_CONTEXTS, strict=True):
        expected = sum(by_definition(model, tokens, min_context))
        assert result.nats == pytest.approx(expected, rel=1e-12)
        assert result.bpb == pytest.approx(expected / log(2) / n, rel=1e-12)
        assert (result.tokens, result.bytes) == (n, n)


@pytest.mark.parametrize("settings", [{}, {"tie_embeddings": True}, {"chunk": 5}])
def test_a_protocols_figure_is_the_same_alone_and_beside_others(settings):
    model = make_model(**settings)
    tokens = draw_text(101)
    for min_context in MIN_CONTEXTS:
        (alone,) = find(model, tokens, [min_context]).scores
        for others in ((0, 3, min_context), (min_context, 12), (11, min_context, 5)):
            beside = find(model, tokens, others)
            (same,) = (s for s in beside.scores if s.windows.min_context == min_context)
            assert same.nats == pytest.approx(alone.nats, rel=1e-12)
            assert (same.bytes, same.protocol) == (alone.bytes, alone.protocol)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("engine", ["reference", "views"])
def test_without_overlap_it_is_the_figure_of_score(n, engine):
    model, tokens = make_model(torch.float32, engine=engine), draw_text(n)
    expected = score(model, tokens, ONE_BYTE)
    (found,) = find(model, tokens, [0]).scores
    assert found.bpb == pytest.approx(expected.bpb, rel=1e-6)
    assert (found.tokens, found.bytes) == (expected.tokens, expected.bytes)
    assert found.protocol == f"{expected.protocol}; a window begins with the start symbol"


def test_the_same_call_gives_the_same_figures_to_the_bit():
    model, tokens = make_model(torch.float32, engine="views"), draw_text(200)
    assert find(model, tokens, MIN_CONTEXTS) == find(model, tokens, MIN_CONTEXTS)


def test_bytes_are_what_tokens_stand_for():
    lengths, tokens = np.arange(1, V + 1), draw_text(50)
    model = make_model()
    results = find(model, tokens, [0, 8], lengths).scores
    for result, same_loss in zip(results, find(model, tokens, [0, 8]).scores, strict=True):
        assert result.bytes == lengths[tokens].sum() > 50
        assert result.nats == same_loss.nats
        assert result.bpb == pytest.approx(same_loss.bpb * 50 / result.bytes)


def test_bytes_of_a_small_type_do_not_overflow():
    tokens = draw_text(500)
    found = find(make_model(), tokens, [0], np.full(V, 255, np.uint8))
    assert found.scores[0].bytes == sum(places.bytes for places in found.curve) == 500 * 255


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("min_context", [0, 8])
def test_the_curve_is_the_loss_by_place_in_the_first_protocols_windows(n, min_context):
    model, tokens, lengths = make_model(), draw_text(n), np.arange(1, V + 1)
    found = find(model, tokens, [min_context, 3], lengths)
    starts = found.scores[0].windows.starts.tolist()
    # Every window as a text of its own, for all of its places count.
    windows = [tokens[start : start + T] for start in starts]
    losses = [by_definition(model, window, 0) for window in windows]
    expected = []
    for first, last in ((0, 0), (1, 1), (2, 3), (4, 7), (8, 12)):
        here = [slice(first, min(last + 1, len(window))) for window in windows]
        nats = sum(sum(loss[place]) for loss, place in zip(losses, here, strict=True))
        n_bytes = sum(
            int(lengths[window[place]].sum()) for window, place in zip(windows, here, strict=True)
        )
        n_tokens = sum(len(window[place]) for window, place in zip(windows, here, strict=True))
        if n_tokens:
            longest = max(map(len, windows))
            expected.append((first, min(last, longest - 1), n_tokens, n_bytes, nats))
    assert [(p.first, p.last, p.tokens, p.bytes) for p in found.curve] == [
        row[:4] for row in expected
    ]
    for places, (*_, n_bytes, nats) in zip(found.curve, expected, strict=True):
        assert places.nats == pytest.approx(nats, rel=1e-12)
        assert places.bpb == pytest.approx(nats / log(2) / n_bytes, rel=1e-12)


def test_without_overlap_the_curve_sums_to_the_figure():
    found = find(make_model(), draw_text(100), [0, 12])
    assert sum(p.nats for p in found.curve) == pytest.approx(found.scores[0].nats, rel=1e-12)
    assert sum(p.bytes for p in found.curve) == found.scores[0].bytes


@pytest.mark.parametrize("engine", ["reference", "views"])
def test_probabilities_of_all_next_tokens_sum_to_one_at_every_position(engine):
    """By the losses that evaluation takes, and by the logits."""
    model = make_model(torch.float32, engine=engine)
    for weight in model.parameters():  # far from uniform
        torch.nn.init.normal_(weight)
    text = torch.from_numpy(draw_text(3 * T).astype(np.int64)).view(3, T)
    inputs = torch.cat([torch.full((3, 1), V), text[:, :-1]], dim=1)
    everywhere = torch.ones(3, T, dtype=torch.bool)
    subject = TrainedModel(model)
    with torch.no_grad():
        losses = torch.stack(
            [subject.token_losses(inputs, torch.full((3, T), v), everywhere) for v in range(V)]
        )
        by_logits = model(inputs).double().softmax(-1).flatten(0, 1).T  # (V, 3 T)
    probabilities = losses.double().neg().exp()
    assert probabilities.std(dim=0).min() > 0.02
    for found in (probabilities, by_logits):
        assert (found.sum(dim=0) - 1).abs().max() < 1e-6
    torch.testing.assert_close(probabilities, by_logits, rtol=1e-4, atol=1e-6)


def test_windows_may_be_shorter_than_the_models():
    model, tokens = make_model(), draw_text(50)
    subject = TrainedModel(model, seq_len=7)
    plan = plan_windows(50, subject.seq_len, [0, 4])
    found = evaluate(subject, tokens, ONE_BYTE[tokens], plan)
    for result, min_context in zip(found.scores, (0, 4), strict=True):
        expected = sum(by_definition(model, tokens, min_context, seq_len=7))
        assert result.nats == pytest.approx(expected, rel=1e-12)
    assert "windows of 7 tokens that begin 3 apart" in found.scores[1].protocol
    with pytest.raises(UserError, match=f"seq_len is 99, and the model takes {T} tokens at once"):
        TrainedModel(model, seq_len=99)


@pytest.mark.parametrize("n", [2, 3, 14, 15, 60])
def test_without_a_start_symbol_the_token_before_stands_there(n):
    model, tokens, lengths = make_model(), draw_text(n), np.arange(1, V + 1)
    found = find(model, tokens, MIN_CONTEXTS, lengths, start_token=None, start_in_words="none")
    for result, min_context in zip(found.scores, MIN_CONTEXTS, strict=True):
        losses = by_definition(model, tokens[1:], min_context, before=int(tokens[0]))
        assert result.nats == pytest.approx(sum(losses), rel=1e-12)
        assert (result.tokens, result.bytes) == (n - 1, lengths[tokens[1:]].sum())
        assert result.protocol.endswith("; none")


def test_dropout_is_off_and_the_mode_restored():
    model = make_model().train()
    first, second = (find(model, draw_text(40), [0, 8]).scores[0].nats for _ in range(2))
    assert first == second
    assert model.training


def test_broken_weights_are_refused_at_the_first_batch():
    model = make_model(torch.float32)
    model.head.weight.data[0, 0] = float("nan")
    passes = []
    subject = TrainedModel(model)
    subject.tokens_at_once = T
    tokens = draw_text(100)
    with pytest.raises(NotFinite, match="not finite; the weights of this model are broken"):
        evaluate(
            subject,
            tokens,
            ONE_BYTE[tokens],
            plan_windows(100, T, [0]),
            on_progress=lambda *_: passes.append(1),
        )
    assert passes == []


def test_progress_counts_the_tokens_of_every_pass():
    seen = []
    subject, tokens = TrainedModel(make_model()), draw_text(40)
    subject.tokens_at_once = 2 * T
    plan = plan_windows(40, T, [5])  # windows at 0, 8, 16, 24 and, of 8 tokens, 32
    evaluate(
        subject, tokens, ONE_BYTE[tokens], plan, on_progress=lambda *counts: seen.append(counts)
    )
    assert seen == [(26, 60), (52, 60), (60, 60)]


def test_the_protocol_says_what_was_done():
    found = find(make_model(), draw_text(100), [0, 9])
    assert [result.protocol for result in found.scores] == [
        "the first 100 bytes, each scored once, in windows of 13 tokens that do not overlap;"
        " context begins anew in each; a window begins with the start symbol",
        "the first 100 bytes, each scored once, in windows of 13 tokens that begin 4 apart; the"
        " first window scores all of its tokens, a later one those with at least 9 tokens of the"
        " text before them in it; a window begins with the start symbol",
    ]
