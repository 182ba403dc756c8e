"""Bytes against those of the tensors that training holds, and against the sets of a cache."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_tx.accounting import cache_bytes, training_state
from sparse_tx.accounting.slots import count_slots
from sparse_tx.cache import KVCache, layout_of
from sparse_tx.cache.layout import Columns, Everything
from sparse_tx.config import ModelConfig, TrainingConfig
from sparse_tx.errors import UserError
from sparse_tx.model import GPT
from sparse_tx.patterns import Dense, parse_pattern
from sparse_tx.training.averaging import WeightAverage
from sparse_tx.training.muon import Muon
from sparse_tx.training.optimiser import make_optimisers
from tests.helpers import HEADS, head_notations, paper_set


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(position="rope", recent_tokens=4, bias=False, activation="swiglu"),
        dict(position="grid+rope", position_shape=(5, 7)),
        dict(position="table", tie_embeddings=True, norm="rmsnorm"),
    ],
)
def test_training_state_equals_that_of_real_optimisers(optimiser, options):
    sizes = dict(vocab_size=17, seq_len=31, n_layer=3, n_head=2, n_embd=28, n_qk=20, n_ff=37)
    config = ModelConfig(**sizes, pattern="local:5,strided:7", **options)
    training = TrainingConfig(max_steps=1, optimiser=optimiser, ema=0.9)
    model = GPT(config)
    tokens = torch.randint(0, 17, (1, 31))
    model.loss(tokens, tokens).backward()
    found = training_state(config, training)
    held = {"adamw": 0, "muon": 0}
    for one in make_optimisers(model, training):
        one.step()
        name = "muon" if isinstance(one, Muon) else "adamw"
        held[name] += bytes_of(t for state in one.state.values() for t in state.values())
    assert {"adamw": found.adamw, "muon": found.muon} == held
    assert found.weights == bytes_of(model.parameters())
    assert found.gradients == bytes_of(p.grad for p in model.parameters())
    assert found.average == bytes_of(WeightAverage(model, 0.9).weights.values())
    assert found.optimiser == found.adamw + found.muon
    assert found.total == found.weights + found.gradients + found.optimiser + found.average


def test_no_average_without_decay():
    assert training_state(ModelConfig(), TrainingConfig(max_steps=1)).average == 0


@given(notation=head_notations(), T=st.integers(1, 50))
def test_cache_equals_the_sets(notation, T):
    """A later reader of a key, if there is one at all, comes within a round of every period."""
    horizon = T + 41
    config = ModelConfig(pattern=notation, n_layer=1, n_head=1, n_embd=6, n_qk=10)
    later = {k for q, k in paper_set(notation, horizon) if k < T <= q}
    now = [k for q, k in paper_set(notation, T) if q == T - 1]
    found = cache_bytes(config, T, batch=3, element_bytes=2)
    assert found.stored.total == len(later) * 3 * 2 * (6 + 10)
    assert found.read.total == len(now) * 3 * 2 * (6 + 10)


def test_layers_and_heads_have_their_own_cache():
    config = ModelConfig(
        pattern="local:5,strided:7/dense", n_layer=3, n_head=2, n_embd=6, n_qk=10, seq_len=29
    )
    found, key = cache_bytes(config), 4 * (3 + 5)
    assert found.stored.heads == ((4 * key,) * 2, (29 * key,) * 2, (4 * key,) * 2)
    assert found.read.heads == ((5 * key,) * 2, (5 * key, 29 * key), (5 * key,) * 2)
    assert found.read.by_layer == (10 * key, 34 * key, 10 * key)


def test_a_million_tokens():
    """Of a strided head all is stored and one key in a stride is read."""
    config = ModelConfig(
        pattern="local:1024,strided:1024", n_layer=2, n_head=1, n_embd=64, position="rope"
    )
    found = cache_bytes(config, 2**20, element_bytes=2)
    per_key = 2 * 2 * 64
    assert found.stored.by_layer == (1023 * per_key, 2**20 * per_key)
    assert found.read.by_layer == (1024 * per_key, 1024 * per_key)
    assert found.allocated.by_layer == (1024 * per_key, 2**20 * per_key)


def cache_of(config, T, texts):
    H = config.n_head
    return KVCache(
        config.stack,
        n_layer=config.n_layer,
        n_head=H,
        texts=texts,
        room=T,
        D=config.qk_width // H,
        D_v=config.n_embd // H,
        dtype=torch.float16,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("T", [1, 2, 61, 127])
@pytest.mark.parametrize("head", HEADS)
def test_allocated_is_what_the_cache_takes(head, T):
    config = ModelConfig(pattern=f"{head},local:5/{head}", n_layer=3, n_head=2, n_embd=6, n_qk=10)
    found, cache = cache_bytes(config, T, batch=3, element_bytes=2), cache_of(config, T, 3)
    assert found.allocated.total == cache.nbytes
    for layer, expected in zip(cache.layers, found.allocated.heads, strict=True):
        for group in layer.groups:
            own = group.layout.slots * group.bytes_of_a_slot // len(group.heads)
            assert expected[group.heads.start : group.heads.stop] == (own,) * len(group.heads)
    assert found.allocated.total >= found.stored.total


@given(notation=head_notations(), T=st.integers(1, 200))
def test_slots_are_those_of_the_layout(notation, T):
    pattern = parse_pattern(notation).at(0, 0, 1)
    found, layout = count_slots(pattern, T), layout_of(pattern, T)
    assert found.total == layout.slots and found.ring == layout.first_of_rest
    assert found.filled == len(layout.fills(T)[1])
    assert found.is_indexed == isinstance(layout.rest, Columns)
    everything = isinstance(layout.rest, Everything)
    assert found.picked == (everything and not isinstance(layout.rest.pattern, Dense))


@pytest.mark.parametrize("name", ["batch", "element_bytes"])
def test_counts_below_one(name):
    with pytest.raises(UserError, match=f"{name} is 0; it must be a whole number"):
        cache_bytes(ModelConfig(), **{name: 0})
    with pytest.raises(UserError, match="T is -1"):
        cache_bytes(ModelConfig(), -1)
