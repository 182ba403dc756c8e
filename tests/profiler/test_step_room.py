"""A step that memory has no room for is refused before it is taken, with what would fit."""

import re
from dataclasses import replace

import pytest

from sparse_tx.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from sparse_tx.errors import UserError
from sparse_tx.profiler import step_room
from sparse_tx.profiler.predict import predict_peak
from sparse_tx.profiler.records import Setting
from sparse_tx.profiler.step_room import require_room_for_step

MODEL = ModelConfig(n_layer=6, n_embd=64, n_head=4, seq_len=4096, position="rope", engine="cpu")
RECIPE = TrainingConfig(max_steps=1, batch_size=6, accumulation=5)


def make_run(training=RECIPE, **model):
    return RunConfig(model=replace(MODEL, **model), data=DataConfig(), training=training)


def needed(run):
    setting = Setting(work="train", label="", model=run.model, training=run.training)
    return predict_peak(setting, "cpu").total


@pytest.fixture
def give(monkeypatch):
    """Let so many bytes be free."""
    return lambda n: monkeypatch.setattr(step_room, "free_bytes", lambda device: int(n))


def refusal(run, **how):
    with pytest.raises(UserError) as refused:
        require_room_for_step(run, "cpu", **how)
    return str(refused.value)


def test_what_fits_is_not_refused(give):
    run = make_run()
    give(needed(run) * 1.04)
    require_room_for_step(run, "cpu")
    give(needed(run) * 1.02)  # predictions are not exact
    refusal(run)


def test_the_message_has_what_it_takes_what_there_is_and_ways_that_are_true(give):
    run = make_run()
    give(needed(run) / 2)
    message = refusal(run)
    assert f"a training step takes {needed(run) / 1e9:.3g} GB" in message
    assert f"{needed(run) / 2e9:.3g} GB of memory are free on the device cpu" in message
    assert "--ignore_memory" in message
    ways = re.findall(r"with ((?:--\w+ \w+ ?)+)\(([\d.]+) GB\)", message)
    assert [flags.split()[0] for flags, _ in ways] == ["--recompute", "--batch_size", "--seq_len"]
    for flags, promised in ways:
        words = flags.split()
        changes = dict(zip(words[::2], words[1::2], strict=True))
        changed = {name.lstrip("-"): value for name, value in changes.items()}
        flat = run.to_flat()
        for name, value in changed.items():
            flat[name] = value == "true" if value == "true" else int(value)
        changed_run = RunConfig.from_flat(flat)
        assert needed(changed_run) <= needed(run) / 2
        assert float(promised) == pytest.approx(needed(changed_run) / 1e9, rel=0.01)
        step = changed_run.training.batch_size * changed_run.training.accumulation
        assert step == RECIPE.batch_size * RECIPE.accumulation


def test_less_room_asks_for_more(give):
    run = make_run()
    for model, way in (
        (dict(recompute=True), "--head_chunk 1 ("),
        (dict(head_chunk=1), "--head_chunk 1 --stored_precision bf16 ("),
    ):
        give(needed(make_run(**model)) * 0.99)
        assert f"with {way}" in refusal(run)


def test_a_run_that_goes_on_keeps_its_batch_and_its_length(give):
    run = make_run()
    give(needed(run) / 2)
    message = refusal(run, resumes=True)
    assert "with --recompute true (" in message
    assert "--batch_size" not in message
    assert "--seq_len" not in message


def test_images_are_not_made_shorter(give):
    run = make_run()
    images = replace(run, data=DataConfig(image_shape=(64, 64, 1)))
    give(needed(run) / 2)
    assert "--seq_len" in refusal(run) and "--seq_len" not in refusal(images)


def test_no_way_but_a_smaller_model(give):
    give(1000)
    assert "; make the model smaller. To go on" in refusal(make_run())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_under_mixed_precision_only_what_cannot_fit_is_refused(give, precision):
    mixed = replace(RECIPE, precision=precision)
    run = make_run(training=mixed)
    give(needed(run) * 0.6)
    require_room_for_step(run, "cpu")
    give(needed(run) * 0.45)
    assert " GB at least, as accounting" in refusal(run)


@pytest.mark.parametrize("error", [OSError, KeyError])
def test_where_memory_is_not_known_nothing_is_refused(monkeypatch, error):
    def unknown(device):
        raise error("MemAvailable")

    monkeypatch.setattr(step_room, "free_bytes", unknown)
    require_room_for_step(make_run(), "cpu")


def test_the_oracle_is_taken_at_its_word(give):
    give(1)
    require_room_for_step(make_run(engine="reference"), "cpu")
