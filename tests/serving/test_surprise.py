"""Scores are those of the context that generation would have; reads are those of the pattern."""

import json
import math

import pytest
import torch

from sparse_tx.data import CharTokenizer
from sparse_tx.errors import UserError
from sparse_tx.generation import first_kept
from sparse_tx.serving.surprise import (
    Scores,
    Window,
    score_window,
    surprise_json,
    tokens_read,
    windows,
)
from tests.helpers import paper_set
from tests.serving.conftest import make_model


@pytest.mark.parametrize("seq_len", [1, 2, 3, 7, 32])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 31, 32, 33, 47, 101])
def test_windows_are_what_generation_sees(length, seq_len):
    found = list(windows(length, seq_len))
    assert [token for w in found for token in range(w.first, w.stop)] == list(range(length))
    for window in found:
        assert window.stop - window.begin <= seq_len
        for token in range(window.first, window.stop):
            assert first_kept(token, seq_len) == window.begin
    assert length > seq_len or len(found) == min(1, length)


@torch.inference_mode()
def expected_logprobs(model, text):
    """(T, V), by a pass for every token."""
    found = []
    for token in range(len(text)):
        context = text[first_kept(token, model.config.seq_len) : token]
        logits = model(torch.tensor([[model.start_token, *context]]))[0, -1]
        found.append(logits.double().log_softmax(-1))
    return torch.stack(found)


@pytest.mark.parametrize("rows", [3, 1 << 20])
def test_scores_are_those_of_single_passes(model, monkeypatch, rows):
    monkeypatch.setattr("sparse_tx.serving.surprise._LOGITS_AT_ONCE", rows * 256)
    text = list(
        b"The text is longer than the context of this model, 32 tokens, and then once more."[:80]
    )
    expected = expected_logprobs(model, text)
    all_windows = list(windows(len(text), model.config.seq_len))
    assert len(all_windows) > 3
    scores = [score_window(model, text, window, 3) for window in all_windows]
    found = torch.tensor([value for each in scores for value in each.logprobs], dtype=torch.double)
    own = expected.gather(1, torch.tensor(text)[:, None])[:, 0]
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)
    top = [each for some in scores for each in some.top]
    for places, row in zip(top, expected, strict=True):
        values, ids = row.sort(descending=True)
        assert [id for id, _ in places] == ids[:3].tolist()
        assert [value for _, value in places] == pytest.approx(values[:3].tolist(), abs=1e-4)


def test_broken_weights_are_told():
    model = make_model()
    model.final_norm.weight.data[3] = math.nan
    with pytest.raises(UserError, match="weights are broken"):
        score_window(model, [1, 2], Window(0, 0, 2), 0)


def test_json_is_in_bits():
    scores = Scores([math.log(0.5), math.log(0.125)], [((1, math.log(0.5)),), ((0, 0.0),)])
    told = json.loads(surprise_json([1, 0], scores, CharTokenizer("a€")))
    assert told == {
        "n_bytes": 4,
        "n_tokens": 2,
        "bits": 4,
        "bits_per_byte": 1,
        "tokens": [1, 0],
        "surprise": [1, 3],
        "top": [[1], [0]],
        "top_surprise": [[1], [0]],
        "bytes": {"0": "61", "1": "e282ac"},
    }


@pytest.mark.parametrize(
    "head", ["dense", "local:7", "strided:5", "fixed:11:3@2", "local:4+strided:6"]
)
def test_reads_are_those_of_the_pattern(head):
    config = make_model(pattern=f"local:1,{head}", seq_len=20).config
    pairs = paper_set(head, 20)
    for token in range(70):
        begin = first_kept(token, 20)
        query = token - begin  # the position of the token before it
        reads = tokens_read(config, layer=1, head=1, token=token)
        expected = {key for asker, key in pairs if asker == query}
        assert reads.start_symbol == (0 in expected)
        found = {read for some in reads.tokens for read in some}
        assert found == {begin + key - 1 for key in expected - {0}}
        assert all(begin <= read < token for read in found)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        ({"layer": 2}, "layer is 2; the model has 2"),
        ({"layer": -1}, "layer is -1"),
        ({"head": 2}, "head is 2; the model has 2"),
        ({"token": -1}, "token is -1"),
    ],
)
def test_what_is_not_there_is_not_read(model, mistake, sentence):
    with pytest.raises(UserError, match=sentence):
        tokens_read(model.config, **{"layer": 0, "head": 0, "token": 0} | mistake)
