"""What is measured is what the rest of the package does."""

import time
from dataclasses import replace

import pytest
import torch

from sparse_tx.accounting import cache_bytes
from sparse_tx.attention import sparse_attention
from sparse_tx.generation import CachedDecoder, NativeDecoder
from sparse_tx.generation.native import why_not_native
from sparse_tx.model import GPT, block
from sparse_tx.profiler.records import WORKS, Setting
from sparse_tx.profiler.works import make_work, small
from tests.profiler.helpers import make_setting
from tests.training.helpers import make_config, make_corpus, make_trainer


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_training_step_is_the_trainers(optimiser, tmp_path):
    config = make_config(
        accumulation=1, warmup_steps=0, optimiser=optimiser, max_steps=10**9, clip=0.01
    )
    config = replace(config, model=replace(config.model, dropout=0.0))
    trainer = make_trainer(
        make_corpus(tmp_path), tmp_path / "run", config, started=time.monotonic()
    )
    setting = Setting(
        work="train", label="", model=trainer.config.model, training=trainer.config.training
    )
    work = make_work(setting)
    trainer.model.load_state_dict(work.model.state_dict())
    # The same windows for both: the trainer's targets are the inputs too.
    trainer.loader.next_batch = lambda progress: (work.tokens, work.tokens)
    for average in (trainer.average, work.average):
        average.weights = {n: p.detach().clone() for n, p in work.model.named_parameters()}
    before = {name: weight.clone() for name, weight in work.model.state_dict().items()}
    for _ in range(2):
        trainer.take_step()
        work.run()
    for found, expected in (
        (work.model.state_dict(), trainer.model.state_dict()),
        (work.average.state_dict(), trainer.average.state_dict()),
    ):
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, msg=name)
    assert any(not torch.equal(before[name], w) for name, w in work.model.state_dict().items())


def seen_by_attention(monkeypatch, run):
    """Shapes, strides and types of what attention is called with."""
    seen = []

    def note(q, k, v, layer, **options):
        seen.append([(x.shape, x.stride(), x.dtype) for x in (q, k, v)])
        return sparse_attention(q, k, v, layer, **options)

    with monkeypatch.context() as patch:
        patch.setattr(block, "sparse_attention", note)
        run()
    return seen


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "model",
    [{}, *({"position": name} for name in ("rope", "grid+rope")), {"qk_norm": True}, {"n_qk": 4}],
)
def test_attention_reads_what_the_model_gives_it(model, precision, monkeypatch):
    setting = make_setting("forward", {"precision": precision}, **model)
    expected = seen_by_attention(monkeypatch, make_work(setting).run)
    inputs = make_work(replace(setting, work="attention")).inputs
    assert expected == [[(x.shape, x.stride(), x.dtype) for x in inputs]] * 2


LOOK_UPS = dict(position="rope", recent_tokens=2, ngrams=(2,), ngram_rows=53, recall=2)


@pytest.mark.parametrize("model", [{}, LOOK_UPS])
def test_a_prompt_ends_at_seq_len(model, monkeypatch):
    lengths = []
    embed = GPT.embed
    monkeypatch.setattr(
        GPT, "embed", lambda self, tokens: lengths.append(tokens.shape[1]) or embed(self, tokens)
    )
    work = make_work(make_setting("prefill", **model))
    for _ in range(2):
        work.prepare()
        work.run()
    assert lengths == [37] * 3 * 2  # the texts of the batch, one after the other


@pytest.mark.parametrize("model", [{}, LOOK_UPS])
@pytest.mark.parametrize("engine", ["auto", "views"])
def test_a_step_ends_at_seq_len_each_time(engine, model, monkeypatch):
    work = make_work(make_setting("decode", engine=engine, **model))
    positions = []
    decoder = {"NativeDecoder": NativeDecoder, "CachedDecoder": CachedDecoder}[work.decoder]
    append = decoder.append

    def note(self, tokens):
        positions.append([token.position for token in tokens])
        logits = append(self, tokens)
        assert logits.shape == (3, 256) and logits.isfinite().all()
        return logits

    monkeypatch.setattr(decoder, "append", note)
    for _ in range(3):
        work.prepare()
        work.run()
        for text, tokens in zip(work._decoding._texts.values(), work.tokens.tolist(), strict=True):
            assert text.held.tokens == [work.model.start_token, *tokens[:35], tokens[-1]]
            assert text.length == 36
    assert positions == [[position] * 3 for position in range(28, 37)] * 3


def test_a_step_reads_no_prompt(monkeypatch):
    """Nothing goes through the model in one pass."""
    work, lengths = make_work(make_setting("decode")), []
    embed = work.model.embed
    monkeypatch.setattr(
        work.model, "embed", lambda tokens: lengths.append(tokens.numel()) or embed(tokens)
    )
    for _ in range(2):
        work.prepare()
        work.run()
    assert lengths == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pattern", ["local:5,strided:5", "fixed:8:2/local:50"])
def test_the_cache_is_what_generation_takes(pattern, precision):
    work = make_work(make_setting("decode", {"precision": precision}, pattern=pattern))
    work.prepare()
    work.run()
    cache = work._decoding.cache
    bytes_each = {"fp32": 4, "bf16": 2}[precision]
    counted = cache_bytes(work.model.config, batch=3, element_bytes=bytes_each)
    assert cache.nbytes == counted.allocated.total
    for layer in cache.layers:
        assert all(group.k.isfinite().all() and group.v.isfinite().all() for group in layer.groups)


def test_the_decoder_is_the_one_that_generates():
    for work in ("prefill", "decode"):
        made = make_work(make_setting(work))
        native = why_not_native(made.model) is None
        assert made.decoder == ("NativeDecoder" if native else "CachedDecoder")
        for setting in (
            make_setting(work, engine="views"),
            make_setting(work, pattern="strided:2+strided:3"),
            make_setting(work, {"precision": "bf16"}),
        ):
            assert make_work(setting).decoder == "CachedDecoder"
    assert make_work(make_setting("train")).decoder == ""


def test_a_table_of_look_ups_is_there_in_full():
    table = make_work(make_setting("forward", **LOOK_UPS)).model.lookups.table
    assert (table != 0).float().mean() > 0.99


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("seq_len", [1, 2])
def test_the_shortest_lengths(work, seq_len):
    doable = make_work(make_setting(work, seq_len=seq_len))
    doable.prepare()
    doable.run()


def test_the_small_version_has_the_same_widths():
    setting = make_setting(
        seq_len=1 << 20, n_layer=50, position_shape=(1 << 15, 32), pattern="local:7*3,strided:3000"
    )
    found = small(setting)
    assert (found.model.seq_len, found.model.n_layer) == (300, 4)
    assert found.training.batch_size == 1
    assert replace(found.model, seq_len=1 << 20, n_layer=50) == setting.model
