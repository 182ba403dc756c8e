"""Look-ups of a text that grows are those of the whole text."""

import pytest
import torch

from sparse_tx.config import ModelConfig
from sparse_tx.model import GPT
from sparse_tx.model import growing_text as growing_text_module
from sparse_tx.model.growing_text import GrowingText

SETTINGS = {
    "both": dict(ngrams=(1, 2, 5), ngram_rows=101, recall=3),
    "n-grams": dict(ngrams=(3,), ngram_rows=65_536),
    "recall": dict(recall=1),
    "recall of more than the n-grams": dict(ngrams=(2,), ngram_rows=7, recall=5),
    "none": dict(),
}


def make_model(**settings):
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=3, seq_len=211, n_layer=1, n_head=1, n_embd=4, **settings)
    return GPT(config)


def draw(T):
    tokens = torch.randint(0, 3, (T,), generator=torch.Generator().manual_seed(T))
    tokens[T // 2 : T // 2 + 30] = 1  # a match as long as it can be
    tokens[0] = 3  # the start symbol
    return tokens


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("begun", [0, 1, 2, 100])
def test_rows_are_those_of_the_whole_text(settings, begun):
    model, tokens = make_model(**settings), draw(211)
    growing = GrowingText(model.config, tokens[:begun].tolist())
    rows = [growing.append(token) for token in tokens[begun:].tolist()]
    if model.lookups is None:
        assert rows == [[]] * (211 - begun)
    else:
        assert rows == model.lookups.rows(tokens[None])[0, begun:].tolist()
    assert growing.tokens == tokens.tolist()


def test_a_hash_in_common_is_no_match(monkeypatch):
    config = make_model(recall=2).config
    monkeypatch.setattr(growing_text_module, "row_of_hash", lambda hashed: 5)
    growing = GrowingText(config)
    rows = [growing.append(token) for token in (3, 0, 1, 2, 1, 2)]
    # The place of the same hash is the token before: its two last tokens are others.
    assert rows == [[0]] * 6


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("position", ["grid", "table", "rope", "grid+rope"])
def test_inputs_are_those_of_the_whole_text(settings, position):
    model, tokens = make_model(recent_tokens=4, position=position, **settings), draw(59)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    whole = model.embed(tokens[None])[0]
    growing = GrowingText(model.config)
    for i, token in enumerate(tokens.tolist()):
        rows = torch.tensor([growing.append(token)], dtype=torch.long)
        found = model.embed_one_token(torch.tensor([growing.recent()]), rows, i)
        torch.testing.assert_close(found[0, 0], whole[i], rtol=1e-5, atol=1e-5)


def test_a_copy_grows_by_itself():
    config = make_model(ngrams=(2,), recall=2).config
    first = GrowingText(config, [3, 0, 1])
    second = first.copy()
    first.append(2)
    assert second.tokens == [3, 0, 1]
    assert second.append(2) == GrowingText(config, [3, 0, 1]).append(2)
