"""Predictions against accounting, which is tested by itself, and against measured peaks."""

from dataclasses import replace

import pytest

from sparse_tx.accounting import (
    attended_pairs,
    cache_bytes,
    decoding_flops,
    nominal_flops,
    prefill_flops,
    training_peak,
    useful_flops,
)
from sparse_tx.accounting.generating import CACHE
from sparse_tx.config import ModelConfig, TrainingConfig
from sparse_tx.errors import UserError
from sparse_tx.profiler.measure import measure
from sparse_tx.profiler.predict import (
    bytes_within,
    pairs_of_work,
    predict,
    predict_peak,
    work_flops,
)
from sparse_tx.profiler.records import WORKS, Setting


def make_setting(work="train", batch_size=2, **model) -> Setting:
    defaults = dict(
        vocab_size=53, seq_len=97, n_layer=4, n_head=2, n_embd=20, pattern="local:7,strided:5"
    )
    config = ModelConfig(**defaults | model)
    training = TrainingConfig(max_steps=1, batch_size=batch_size)
    return Setting(work=work, label=config.pattern, model=config, training=training)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_step_is_all_of_accounting(recompute):
    setting = make_setting(recompute=recompute)
    found = predict(setting, "views", seconds=2.0)
    assert found.pairs == attended_pairs(setting.model).total
    assert found.dense_pairs == 4 * 2 * 97 * 98 // 2
    assert sum(found.useful_flops.values()) == useful_flops(setting.model, batch=2).total
    assert sum(found.nominal_flops.values()) == nominal_flops(setting.model, batch=2).total
    assert found.peak_bytes == sum(found.peak_parts.values())
    assert found.peak_bytes >= training_peak(setting.model, setting.training).total
    assert found.seconds == 2.0


def test_works_take_their_share_of_a_training_step():
    train, forward, prefill, attention = (
        work_flops(make_setting(work)) for work in ("train", "forward", "prefill", "attention")
    )
    flops = useful_flops(make_setting().model, batch=2)
    assert forward == flops.all_parts.forward
    assert forward - prefill == flops.head.forward * 96 // 97
    assert work_flops(make_setting("decode")) == decoding_flops(make_setting().model, batch=2).total
    assert attention == (flops.scores + flops.values).total // 4  # layers alternate
    assert train == flops.total


def test_attention_is_a_round_of_layers_whatever_the_depth():
    shallow, deep = make_setting("attention"), make_setting("attention", n_layer=8, recompute=True)
    assert work_flops(shallow) == work_flops(deep)
    assert predict(shallow, "views").pairs == predict(deep, "views").pairs
    alone = [make_setting("attention", pattern=p) for p in ("local:7", "strided:5")]
    assert work_flops(shallow) == sum(map(work_flops, alone)) // 2


def test_a_depth_that_is_no_multiple_of_the_round():
    """Attention is the mean over a round; a model's pairs and tiles are those of its layers."""
    local, strided = (make_setting("attention", pattern=p) for p in ("local:7", "strided:5"))
    both = make_setting("attention", n_layer=3)
    assert pairs_of_work(both) == (pairs_of_work(local) + pairs_of_work(strided)) // 2
    model = predict(make_setting(n_layer=3), "views")
    assert model.pairs == 2 * pairs_of_work(local) + pairs_of_work(strided)

    def live(pairs, found):
        return pairs / found.useful_tile_share

    alone = [predict(make_setting(pattern=p, n_layer=1), "views") for p in ("local:7", "strided:5")]
    first, second = (live(found.pairs, found) for found in alone)
    assert live(model.pairs, model) == pytest.approx(2 * first + second)


def test_dense_has_no_idle_tiles_but_for_the_triangle():
    share = predict(make_setting(pattern="dense", seq_len=256), "views").useful_tile_share
    assert share == pytest.approx(256 * 257 / 2 / (3 * 128**2))


@pytest.mark.parametrize("work", WORKS)
def test_bytes_within_a_limit(work):
    setting = make_setting(work, seq_len=499, pattern="local:64,strided:16")
    peak = predict_peak(setting, "views").total
    for limit in (peak + 1, peak):
        assert bytes_within(setting, "views", limit) == peak
    for limit in (peak - 1, peak // 2, 1):
        assert limit < bytes_within(setting, "views", limit) <= peak


def test_a_step_of_generation_reads_keys_of_one_query():
    found = predict(make_setting("decode"), "cpu")
    assert found.pairs == 2 * 2 * (7 + 20)  # of 97 positions: the last 7, and every fifth
    assert found.dense_pairs == 4 * 2 * 97
    dense = predict(make_setting("decode", pattern="dense"), "cpu")
    assert dense.pairs == dense.dense_pairs == found.dense_pairs
    assert found.nominal_flops == dense.useful_flops
    model = make_setting().model
    prefill = predict(make_setting("prefill"), "cpu").nominal_flops
    assert sum(prefill.values()) == prefill_flops(model, batch=2, nominal=True).total


@pytest.mark.parametrize(("precision", "element_bytes"), [("fp32", 4), ("bf16", 2)])
@pytest.mark.parametrize("work", ["prefill", "decode"])
def test_generation_holds_its_cache(work, precision, element_bytes):
    setting = make_setting(work)
    setting = replace(setting, training=replace(setting.training, precision=precision))
    found = predict(setting, "cpu")
    counted = cache_bytes(setting.model, batch=2, element_bytes=element_bytes)
    assert found.cache_allocated_bytes == counted.allocated.total
    assert found.cache_stored_bytes == counted.stored.total
    assert found.cache_read_bytes == counted.read.total
    assert found.peak_parts[CACHE] >= counted.allocated.total
    if work == "decode":
        assert found.peak_parts[CACHE] == counted.allocated.total


def test_an_engine_of_unknown_memory():
    with pytest.raises(UserError, match="the memory of engine='reference' is not known"):
        predict(make_setting(), "reference")


@pytest.mark.parametrize("engine", ["auto", "views"])
@pytest.mark.parametrize("work", WORKS)
def test_the_measured_peak_is_what_was_predicted(work, engine):
    setting = make_setting(
        work, 1, seq_len=9001, n_embd=128, n_layer=2, n_head=4, pattern="local:128,strided:64"
    )
    setting = replace(setting, model=replace(setting.model, engine=engine))
    measured = measure(setting, rounds=1, want=("peak",))
    assert measured.failure is None
    predicted = predict_peak(setting, measured.engine).total
    assert predicted == pytest.approx(measured.peak_bytes, rel=0.05)


@pytest.mark.parametrize(
    "pattern", ["fixed:128:32,strided:100", "local:2000,local:3000+strided:500"]
)
@pytest.mark.parametrize("work", ["prefill", "decode"])
def test_the_measured_peak_of_generation(work, pattern):
    """With all that a text keeps beside its keys: rotary table, look-ups, tables of columns."""
    options = dict(position="rope", qk_norm=True, recent_tokens=3, ngrams=(3, 4), recall=4)
    sizes = dict(vocab_size=256, seq_len=30_011, n_embd=128, n_layer=4, n_head=4, chunk=8192)
    setting = make_setting(work, 1, pattern=pattern, **options, **sizes)
    measured = measure(setting, rounds=1, want=("peak",))
    assert measured.failure is None
    predicted = predict_peak(setting, measured.engine).total
    assert predicted == pytest.approx(measured.peak_bytes, rel=0.05)


def test_prompts_of_a_batch_share_what_reading_one_takes():
    setting = make_setting("prefill", 3, seq_len=9001, n_embd=128, n_layer=2, n_head=4)
    measured = measure(setting, rounds=1, want=("peak",))
    predicted = predict_peak(setting, measured.engine).total
    assert predicted == pytest.approx(measured.peak_bytes, rel=0.05)
