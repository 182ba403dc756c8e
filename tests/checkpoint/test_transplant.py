"""Weights under another pattern or length: what carries over, and what is refused."""

import pytest
import torch

from sparse_tx.checkpoint import (
    load_checkpoint,
    positions_in_words,
    transplant_config,
    transplant_weights,
    transplanted,
)
from sparse_tx.config import ModelConfig
from sparse_tx.errors import UserError
from sparse_tx.model import GPT


def make(**settings):
    defaults = dict(
        vocab_size=11, seq_len=29, n_layer=2, n_head=2, n_embd=10, pattern="local:5,strided:7"
    )
    return ModelConfig(**defaults | settings)


def random_model(config):
    torch.manual_seed(0)
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def moved(model, wanted):
    other = GPT(wanted).eval()
    other.load_state_dict(transplant_weights(model.state_dict(), model.config, wanted))
    return other


@pytest.mark.parametrize("position", ["grid", "table", "rope", "grid+rope", "none"])
@pytest.mark.parametrize("pattern", ["dense", "local:3/strided:4,fixed:6:2", "strided:13"])
def test_another_pattern_changes_the_pattern_alone(pattern, position):
    n_qk = 20 if "rope" in position else None
    trained = make(position=position, n_qk=n_qk)
    model = random_model(trained)
    wanted = transplant_config(trained, pattern=pattern)
    other = moved(model, wanted)
    assert (wanted.pattern, wanted.grid == trained.grid) == (
        pattern,
        "grid" in position or wanted.grid == trained.grid,
    )
    for name, weight in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name
    tokens = torch.randint(11, (2, 29))
    assert not torch.allclose(other(tokens), model(tokens))
    back = moved(other, transplant_config(wanted, pattern=trained.pattern))
    assert torch.equal(back(tokens), model(tokens))


@pytest.mark.parametrize("position", ["grid", "table", "rope", "grid+rope", "none"])
@pytest.mark.parametrize("seq_len", [13, 29, 64])
def test_another_length_computes_the_same_up_to_the_shorter_one(seq_len, position):
    trained = make(position=position, n_qk=20 if "rope" in position else None)
    model = random_model(trained)
    wanted = transplant_config(trained, seq_len=seq_len)
    T = min(29, seq_len)
    tokens = torch.randint(11, (3, seq_len))
    expected = model(tokens[:, :T])
    found = moved(model, wanted)(tokens)[:, :T]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_longer_grid_gets_rows_and_keeps_its_columns():
    trained = make()
    assert trained.grid == (5, 7)
    wanted = transplant_config(trained, seq_len=64, pattern="fixed:16:4")
    assert (wanted.grid, wanted.position_shape) == ((10, 7), (10, 7))
    state = random_model(trained).state_dict()
    found = transplant_weights(state, trained, wanted)
    rows = found["positions.tables.0"]
    assert torch.equal(rows[:5], state["positions.tables.0"])
    assert torch.equal(rows[5:], state["positions.tables.0"].mean(0).expand(5, -1))
    assert torch.equal(found["positions.tables.1"], state["positions.tables.1"])
    said = positions_in_words(trained, wanted)
    assert said == (
        "the trained grid of 5x7 is kept, and 5 rows more begin as the mean of its rows"
    )
    shorter = transplant_config(trained, seq_len=8, pattern="dense")
    assert shorter.grid == (5, 7)  # nothing that was trained is thrown away
    assert positions_in_words(trained, shorter) == "the trained grid of 5x7 is kept"


def test_images_keep_their_axes():
    trained = make(position_shape=(3, 5, 2))
    assert transplant_config(trained, seq_len=47).grid == (5, 5, 2)
    assert transplant_config(trained, pattern="dense").grid == (3, 5, 2)


def test_a_longer_table_gets_rows():
    trained = make(position="table")
    state = random_model(trained).state_dict()
    for seq_len, words in ((41, "29 trained ones, and 12 more"), (7, "first 7 of 29 trained")):
        wanted = transplant_config(trained, seq_len=seq_len)
        table = transplant_weights(state, trained, wanted)["positions.tables.0"]
        assert torch.equal(table[:29], state["positions.tables.0"][:seq_len])
        assert torch.equal(table[29:], state["positions.tables.0"].mean(0).expand(seq_len, -1)[29:])
        assert len(table) == seq_len
        assert words in positions_in_words(trained, wanted)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"n_layer": 3}, "n_layer is 3, and the weights are of a model whose n_layer is 2; leave"),
        ({"n_embd": 20, "n_layer": 3}, "n_layer is 3, and"),  # the first of both
        ({"n_head": 1}, "n_head is 1, and .* is 2"),
        ({"n_ff": 41}, "n_ff is 41, and .* is 40"),
        ({"activation": "relu2"}, "activation is relu2, and .* is gelu"),
        ({"position": "none"}, "position is none, and .* is grid"),
        ({"qk_norm": True}, "qk_norm is True, and .* is False"),
        ({"position_shape": (8, 4)}, "position_shape is 8x4, and the weights are of a grid of 5x7"),
        ({"position_shape": (4, 7), "seq_len": 28}, "position_shape is 4x7, and .* 5x7"),
    ],
)
def test_another_model_is_refused_by_its_first_setting(other, sentence):
    with pytest.raises(UserError, match=sentence):
        transplanted(make(), make(**other))


def test_what_weights_do_not_depend_on_is_free():
    free = dict(dropout=0.3, recompute=True, chunk=7, engine="views", init="zero-out", n_ff=40)
    free |= dict(head_chunk=1, stored_precision="bf16")
    wanted = transplanted(make(), make(pattern="dense", seq_len=33, **free))
    assert (wanted.dropout, wanted.engine, wanted.grid) == (0.3, "views", (5, 7))
    # A grid that the user asks for, with further rows.
    assert transplanted(make(), make(position_shape=(9, 7))).grid == (9, 7)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pattern": "lokal:4"}, "unknown word 'lokal'.*did you mean 'local'"),
        ({"pattern": "dense/dense/dense"}, "2 heads cannot be split into 3 equal groups"),
        ({"pattern": ""}, "write one such as"),
        ({"seq_len": 0}, "seq_len is 0; it must be 1 or more"),
    ],
)
def test_patterns_and_lengths_that_are_none(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        transplant_config(make(), **changes)


def test_a_checkpoint_is_loaded_under_another_pattern(save, run, config):
    model = random_model(config.model)
    averaged = {name: 2 * weight for name, weight in model.state_dict().items()}
    save(3, model_state=model.state_dict(), ema_state=averaged)
    loaded, _, found = load_checkpoint(run, pattern="dense", seq_len=23)
    assert (found.model.pattern, found.model.seq_len) == ("dense", 23)
    assert (loaded.config, found.data) == (found.model, config.data)
    assert not loaded.training
    assert torch.equal(
        loaded.state_dict()["positions.tables.0"][:4], averaged["positions.tables.0"]
    )
    assert len(loaded.state_dict()["positions.tables.0"]) == 6
    same, _, _ = load_checkpoint(run, pattern=config.model.pattern)
    plain, _, _ = load_checkpoint(run)
    tokens = torch.randint(256, (1, 16))
    assert torch.equal(same(tokens), plain(tokens))
