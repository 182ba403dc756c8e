"""Parameters by configuration alone against those of the real model."""

from collections import Counter

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_tx.accounting import count_parameters
from sparse_tx.accounting.parameters import list_weights
from sparse_tx.config import ModelConfig, RunConfig, preset_names, preset_text
from sparse_tx.model import GPT


def build(config):
    with torch.device("meta"):
        return GPT(config)


@st.composite
def model_configs(draw):
    """Any combination of the options that decide what parameters there are."""
    n_head = draw(st.sampled_from([1, 2, 3]))
    return ModelConfig(
        vocab_size=draw(st.integers(1, 300)),
        seq_len=draw(st.integers(1, 200)),
        n_layer=draw(st.integers(1, 4)),
        n_head=n_head,
        n_embd=n_head * 2 * draw(st.integers(1, 9)),
        n_qk=draw(st.none() | st.integers(1, 9).map(lambda n: n * 2 * n_head)),
        n_ff=draw(st.none() | st.integers(1, 70)),
        pattern=draw(st.sampled_from(["dense", "local:7,strided:5", "fixed:11:3"])),
        activation=draw(st.sampled_from(["gelu", "relu2", "swiglu"])),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
        bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        position=draw(st.sampled_from(["grid", "table", "rope", "grid+rope", "none"])),
        recent_tokens=draw(st.integers(1, 5)),
        ngrams=draw(st.sampled_from([(), (2,), (1, 3)])),
        ngram_rows=draw(st.integers(1, 40)),
        recall=draw(st.integers(0, 3)),
        tie_embeddings=draw(st.booleans()),
    )


@given(config=model_configs())
@settings(max_examples=150)
def test_equals_the_real_model(config):
    shapes = Counter()
    for weights in list_weights(config):
        shapes[weights.in_block, weights.shape] += weights.copies
    assert shapes == Counter(
        (name.startswith("blocks."), tuple(parameter.shape))
        for name, parameter in build(config).named_parameters()
    )


@given(config=model_configs())
@settings(max_examples=50)
def test_parts_are_those_of_the_real_model(config):
    words = {
        "embedding": "embeddings",
        "lookups": "lookups",
        "positions": "positions",
        "norm": "norms",
        "to_qkv": "qkv",
        "attention.to_out": "output",
        "feed_forward.": "feed_forward",
        "head": "head",
    }
    parts = Counter()
    for name, parameter in build(config).named_parameters():
        parts[next(part for word, part in words.items() if word in name)] += parameter.numel()
    assert count_parameters(config).parts == {part: parts[part] for part in words.values()}


@pytest.mark.parametrize("preset", preset_names())
def test_presets_equal_the_real_model(preset):
    config = RunConfig.from_flat(yaml.safe_load(preset_text(preset))).model
    assert count_parameters(config).total == build(config).n_parameters()


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("enwik8-paper", 94_949_888),
        ("cifar10-paper", 59_196_928),
        ("imagenet64-paper", 151_645_184),
    ],
)
def test_the_papers_recipes(preset, parameters):
    config = RunConfig.from_flat(yaml.safe_load(preset_text(preset))).model
    assert count_parameters(config).total == parameters
