"""Settings: what they allow, how they are stored, what they say."""

import pytest
import yaml

from sparse_tx.config import (
    ModelConfig,
    RunConfig,
    SamplingConfig,
    TrainingConfig,
    preset_names,
    preset_text,
)


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_whole_and_round_trip(name):
    config = RunConfig.from_flat(yaml.safe_load(preset_text(name)))
    stored = yaml.safe_load(yaml.safe_dump(config.to_flat()))
    assert RunConfig.from_flat(stored) == config


def test_the_promised_presets_are_there():
    promised = {"cpu", "tiny", "enwik8-paper", "cifar10-paper", "imagenet64-paper"}
    assert promised <= set(preset_names())


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'enwik8-paper'"):
        preset_text("enwik8")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(n_head=3), "n_embd is 128, which 3 heads"),
        (dict(n_qk=10), "n_qk is 10, which 4 heads"),
        (dict(pattern="local:4/dense/strided:3"), "4 heads cannot be split into 3 equal groups"),
        (dict(pattern="summary:4:5"), "wider than its block"),
        (dict(dropout=1.0), "dropout is 1.0"),
        (dict(seq_len=0), "seq_len is 0"),
        (dict(n_ff=0), "n_ff is 0"),
        (dict(position="rope", n_qk=12), "make n_qk / n_head even"),
        (dict(position_shape=(3, 4)), "position_shape 3x4 has 12 cells, fewer than seq_len 1024"),
    ],
)
def test_impossible_models_get_a_sentence(settings, sentence):
    with pytest.raises(ValueError) as raised:
        ModelConfig(**settings)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(), "a run needs an end"),
        (dict(max_steps=0), "max_steps is 0"),
        (dict(max_steps=5, lr=0.0), "lr is 0.0"),
        (dict(max_steps=5, ema=1.0), "ema is 1.0"),
        (dict(max_steps=5, batch_size=-1), "batch_size is -1"),
        (dict(max_steps=5, seed=2**63), "seed is 9223372036854775808; it must be below 2^63"),
        (dict(max_minutes=-1.0), "max_minutes is -1.0"),
        (dict(max_steps=5, length_warmup="256"), "write LENGTH:SHARE"),
        (dict(max_steps=5, length_warmup="256:0.5,512:0.2"), "must ascend"),
        (dict(max_steps=5, length_warmup="256:1.5"), "up to 1"),
        (dict(max_steps=5, length_warmup="0:0.5"), "lengths are 1 or more"),
        (dict(max_steps=5, table_lr=0.0), "table_lr is 0.0"),
    ],
)
def test_impossible_trainings_get_a_sentence(settings, sentence):
    with pytest.raises(ValueError) as raised:
        TrainingConfig(**settings)
    assert sentence in str(raised.value)


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=-1.0),
        dict(temperature=float("nan")),
        dict(top_k=0),
        dict(top_p=0.0),
        dict(top_p=1.5),
        dict(min_p=-0.1),
        dict(repetition_penalty=0.0),
        dict(repetition_penalty=float("nan")),
        dict(repetition_penalty=float("inf")),
        dict(repetition_window=0),
    ],
)
def test_impossible_sampling_gets_a_sentence(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        SamplingConfig(**settings)


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="there is no setting 'n_layers'"):
        RunConfig.from_flat({"n_layers": 3, "max_steps": 1})


def test_the_position_grid_is_as_wide_as_the_stride():
    assert ModelConfig(seq_len=1000, pattern="local:7,strided:64").grid == (16, 64)
    assert ModelConfig(seq_len=1000, pattern="fixed:128:32").grid == (8, 128)
    assert ModelConfig(seq_len=1000, pattern="dense").grid == (32, 32)
    assert ModelConfig(seq_len=12, pattern="strided:64").grid == (1, 12)
