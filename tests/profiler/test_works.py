"""What is measured is what the rest of the package does."""

import time
from dataclasses import replace

import pytest
import torch

from sparse_tx.attention import sparse_attention
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
@pytest.mark.parametrize("model", [{}, {"position": "rope"}, {"qk_norm": True}, {"n_qk": 4}])
def test_attention_reads_what_the_model_gives_it(model, precision, monkeypatch):
    setting = make_setting("forward", {"precision": precision}, **model)
    expected = seen_by_attention(monkeypatch, make_work(setting).run)
    inputs = make_work(replace(setting, work="attention")).inputs
    assert expected == [[(x.shape, x.stride(), x.dtype) for x in inputs]] * 2


@pytest.mark.parametrize(("work", "calls"), [("prefill", [37]), ("decode", [36, 37])])
def test_generation_ends_at_seq_len(work, calls, monkeypatch):
    lengths = []
    hidden = GPT.hidden
    monkeypatch.setattr(
        GPT, "hidden", lambda self, tokens: lengths.append(tokens.shape[1]) or hidden(self, tokens)
    )
    doable = make_work(make_setting(work))
    for _ in range(2):
        doable.prepare()
        doable.run()
    assert lengths == calls * 2


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
