"""Peaks of generation against all that torch allocates, and against Python's own memory."""

import tracemalloc
from dataclasses import replace

import pytest
import torch

from sparse_tx.accounting import (
    cache_bytes,
    decoding_peak,
    generating,
    model_in_prefill,
    prefill_peak,
)
from sparse_tx.accounting import ledger as ledger_module
from sparse_tx.accounting.forward_pass import ROTARY_TABLE, WORKSPACE
from sparse_tx.accounting.generating import CACHE, TEXTS
from sparse_tx.accounting.long_blocks import LongPass
from sparse_tx.config import ModelConfig
from sparse_tx.config import model as model_config
from sparse_tx.errors import UserError
from sparse_tx.generation import CachedDecoder
from sparse_tx.model import GPT, incremental
from sparse_tx.model.growing_text import GrowingText
from sparse_tx.model.positions import _turns
from tests.accounting.allocations import (
    MODERN,
    allocated_peak,
    draw,
    make_config,
    workspaces,
)

ALL_HEADS, ONE_HEAD = 1 << 27, 1


def set_heads_at_once(monkeypatch, numbers):
    """So many numbers of queries, keys and values may exist at one time."""
    monkeypatch.setattr(model_config, "_READ_AT_ONCE", numbers)


def first_prefill(config, batch=1):
    """Predicted and allocated bytes of the first prefill at a length, the weights aside."""
    model, tokens = GPT(config).eval(), draw(config, batch)
    engine = workspaces(model_in_prefill(config), 1)
    parts = prefill_peak(config, batch=batch, workspaces=engine).parts
    predicted = sum(size for part, size in parts.items() if part not in ("weights", TEXTS))
    found = allocated_peak(
        lambda: CachedDecoder(model).prefill(tokens[:, 1:]), before=_turns.cache_clear
    )
    return predicted - 8 * tokens.numel(), found


def test_heads_at_once_are_as_many_as_the_model_takes(monkeypatch):
    config = make_config(seq_len=31, n_head=6, n_qk=36)
    taken = []

    def note(x, block, heads_at_once, keep):
        taken.append(heads_at_once)
        return x

    monkeypatch.setattr(incremental, "through_one_long_block", note)
    model, of_a_head = GPT(config).eval(), 31 * (2 * 6 + 10)
    at_once = [1, of_a_head - 1, of_a_head, 2 * of_a_head - 1, 5 * of_a_head, 9 * of_a_head]
    for numbers in at_once:
        set_heads_at_once(monkeypatch, numbers)
        CachedDecoder(model).prefill(draw(config, 1)[:, 1:])
        assert model_in_prefill(config).head_chunk == taken[-1]
    assert taken[:: config.n_layer] == [1, 1, 1, 1, 5, 6]


@pytest.mark.parametrize("at_once", [ALL_HEADS, ONE_HEAD])
@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        MODERN,
        MODERN | dict(chunk=57, n_layer=5, n_head=3),
        dict(norm="rmsnorm", chunk=401, position="none"),
        dict(activation="swiglu", position="table", tie_embeddings=True, n_qk=36, n_ff=97),
        MODERN | dict(ngrams=(3, 5), ngram_rows=503, recall=3),
        MODERN | dict(pattern="local:7", n_ff=8),
        MODERN | dict(pattern="fixed:31:5,dense", engine="views"),
        MODERN | dict(pattern="local:30/summary:31:5", engine="cpu", n_ff=8),
        MODERN | dict(n_qk=180, n_ff=8, pattern="strided:7"),
    ],
    ids=str,
)
def test_prefill_allocates_what_is_predicted(settings, at_once, monkeypatch):
    set_heads_at_once(monkeypatch, at_once)
    predicted, found = first_prefill(make_config(dropout=0.1, recompute=True, **settings), batch=2)
    assert predicted == pytest.approx(found, rel=3e-3)


def test_a_first_prefill_computes_its_rotary_table():
    """Beside activations so small that it decides."""
    config = make_config(**MODERN | dict(n_ff=8, n_head=1, pattern="local:7", chunk=50))
    assert prefill_peak(config).parts[ROTARY_TABLE] == 4 * (4 * 60 * 2048)
    predicted, found = first_prefill(config)
    assert predicted == pytest.approx(found, rel=3e-3)
    model, tokens = GPT(config).eval(), draw(config, 1)
    assert allocated_peak(lambda: CachedDecoder(model).prefill(tokens[:, 1:])) < 0.8 * found


@pytest.mark.parametrize("chunk", [1031, 100, 31])
@pytest.mark.parametrize("at_once", [ALL_HEADS, ONE_HEAD])
def test_one_piece_stands_for_those_like_it(chunk, at_once, monkeypatch):
    monkeypatch.setattr(ledger_module, "LARGE", 1000)
    set_heads_at_once(monkeypatch, at_once)
    config = make_config(**MODERN | dict(chunk=chunk))
    found = [prefill_peak(replace(config, n_layer=n)) for n in (2, 4, 6)]
    monkeypatch.setattr(generating._Prefill, "pieces_in_turn", LongPass.pieces_in_turn)
    assert found == [prefill_peak(replace(config, n_layer=n)) for n in (2, 4, 6)]
    two, four, six = (peak.fresh_bytes for peak in found)
    assert two < four < six and six - four == four - two


def test_what_is_fresh_for_every_prompt(monkeypatch):
    """Caches are taken once for all texts, and activations for each of them."""
    monkeypatch.setattr(ledger_module, "LARGE", 4 * 60 * 1031)
    config = make_config(position="none", n_layer=2)
    one, two, three = (prefill_peak(config, batch=n).fresh_bytes for n in (1, 2, 3))
    of_a_text = 2 * 4 * 1031 * (3 * 60 + 4 * 240)  # two layers: the projection, and four of gelu
    of_caches = 2 * 4 * 60 * 1036  # keys and values of the strided layer, 148 in each of 7 rows
    assert one == of_a_text + of_caches
    assert (two, three) == (2 * one, 3 * one)


@pytest.mark.parametrize("pattern", ["local:7,strided:7", "fixed:31:5,dense/local:2000"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoding_holds_cache_and_weights(pattern, dtype):
    config = make_config(pattern=pattern, n_qk=36, **MODERN)
    model = GPT(config).eval().to(dtype)
    decoder = CachedDecoder(model)
    decoder.prefill(draw(config, 2)[:, :3])
    parts = decoding_peak(config, batch=2, element_bytes=dtype.itemsize).parts
    assert parts[CACHE] == decoder.cache.nbytes
    assert (
        parts[CACHE] == cache_bytes(config, batch=2, element_bytes=dtype.itemsize).allocated.total
    )
    assert parts["weights"] == 4 * model.n_parameters()
    assert parts[ROTARY_TABLE] == _turns(2048, 18, torch.device("cpu")).nbytes
    assert set(parts) == {CACHE, TEXTS, ROTARY_TABLE, "weights", "tokens"}


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("local:500+strided:7", 500 + (531 + 6) // 7),
        ("strided:2+strided:3", 516 + 344 - 172),
        ("dense", 0),
        ("local:500", 0),
        ("strided:2", 0),
    ],
)
def test_torch_puts_together_what_a_step_reads(pattern, keys):
    """Keys and values of both heads, wherever they do not lie side by side."""
    config = make_config(pattern=pattern, n_layer=2, n_ff=8, position="none")
    model = GPT(config).eval()
    cache = incremental.make_cache(model, texts=1, room=1031)
    for layer in cache.layers:
        for group in layer.groups:
            group.k.normal_(), group.v.normal_()
    recent, rows = torch.tensor([[5]]), torch.empty(1, 0, dtype=torch.long)
    predicted = decoding_peak(config, gathers=True).parts.get(WORKSPACE, 0)
    assert predicted == keys * 4 * 2 * 60
    found = allocated_peak(
        lambda: incremental.decode_one_token(model, recent, rows, cache, slice(0, 1), 1030)
    )
    assert predicted <= found < 1.1 * predicted + 30_000


def test_what_is_picked_is_put_together_in_any_case():
    picked, plain = (make_config(pattern=p) for p in ("strided:2+strided:3", "fixed:31:5"))
    assert decoding_peak(picked) == decoding_peak(picked, gathers=True)
    assert decoding_peak(plain).total < decoding_peak(plain, gathers=True).total


@pytest.mark.parametrize(
    "settings", [dict(vocab_size=256), dict(vocab_size=256, recall=4), dict(vocab_size=60_000)]
)
def test_a_text_takes_what_python_takes(settings):
    """But for what its small objects are rounded up to."""
    config = make_config(**settings)
    T = 43_011  # as many entries as nearly fill a dictionary of 65,536 places
    tokens = torch.randint(0, config.vocab_size, (T,))
    tracemalloc.start()
    text = GrowingText(config, tokens.tolist())
    found, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(text.tokens) == T
    predicted = generating._bytes_of_text(config, T)
    assert found - 300 < predicted < 1.2 * found  # a list and two objects aside


def test_tables_of_columns_are_held_once_for_each_pattern():
    plain, indexed = (make_config(pattern=p) for p in ("block:31*3", "fixed:31:5*3"))
    own, other = (decoding_peak(config).parts[TEXTS] for config in (indexed, plain))
    assert own - other == 2 * 4 * 1032  # one for each head, the same in every layer


def test_the_length_need_not_be_the_models():
    config = make_config(position="rope")
    longer = replace(config, seq_len=2048)
    assert prefill_peak(config, 2048) == prefill_peak(longer)
    assert decoding_peak(config, 2048) == decoding_peak(longer)


@pytest.mark.parametrize("count", [prefill_peak, decoding_peak])
def test_no_length_or_batch(count):
    with pytest.raises(UserError, match="T is 0"):
        count(ModelConfig(), 0)
    with pytest.raises(UserError, match="batch is 0"):
        count(ModelConfig(), batch=0)
    with pytest.raises(UserError, match="element_bytes is 0"):
        count(ModelConfig(), element_bytes=0)
