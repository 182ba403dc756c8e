"""Bad steps: what is one, that nothing of it remains, and when they end a run."""

import copy
import math
import random
from dataclasses import replace

import pytest
import torch

from sparse_tx.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from sparse_tx.config import TrainingConfig
from sparse_tx.errors import UserError
from sparse_tx.training import Reporter, Trainer
from sparse_tx.training.bad_steps import BadSteps
from sparse_tx.training.loss_scale import LossScale
from tests.training.helpers import make_config, make_corpus, make_trainer, read_metrics

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def after(losses, **settings):
    judge = BadSteps(TrainingConfig(max_steps=1, **settings))
    for loss in losses:
        judge.take(loss)
    return judge


# --- The rule -----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [NAN, INF, -INF])
def test_a_loss_or_norm_that_is_not_finite_is_bad_from_the_first_step(loss):
    judge = after([])
    assert str(loss) in judge.fault_of_loss(loss)
    assert str(loss) in judge.fault_of_gradient(loss)
    assert judge.fault_of_loss(1e30) is None
    assert judge.fault_of_gradient(1e30) is None


def test_nothing_is_a_spike_until_a_hundred_steps_were_taken():
    losses = [2.0, 3.0] * 50
    assert after(losses[:99]).limit == INF
    # Plain mean and deviation so far: 2.5 and .5.
    assert after(losses).limit == pytest.approx(2.5 + 10 * 0.5)
    assert after(losses, spike=3.0).limit == pytest.approx(4.0)
    assert after(losses, spike=None).limit == INF


def test_mean_and_deviation_forget():
    judge, mean, square = after([4.0] * 100), 4.0, 16.0
    random.seed(3)
    for _ in range(307):
        loss = random.uniform(1, 2)
        judge.take(loss)
        mean, square = 0.99 * mean + 0.01 * loss, 0.99 * square + 0.01 * loss**2
    assert judge.limit == pytest.approx(mean + 10 * math.sqrt(square - mean**2))


def test_losses_that_hardly_vary_may_still_rise_by_half():
    judge = after([1.0] * 200)
    assert judge.fault_of_loss(1.49) is None
    assert "spike above 1.5, which is the running mean of 1 and 10 deviations" in (
        judge.fault_of_loss(1.51)
    )


def test_windows_of_differing_difficulty_are_no_spikes():
    random.seed(5)
    judge = after([])
    for step in range(3000):
        # A loss that falls from 8 to 2, windows whose own share varies with a heavy tail.
        loss = (2 + 6 * math.exp(-step / 150)) * random.lognormvariate(0, 0.15)
        assert judge.fault_of_loss(loss) is None
        judge.take(loss)
    assert judge.fault_of_loss(8.0)


def test_a_skipped_step_does_not_move_the_limit_and_a_taken_one_ends_the_row():
    judge = after([2.0, 3.0] * 50, max_bad_steps=3)
    limit = judge.limit
    for _ in range(2):
        judge.skip()
    judge.skip(bad=False)
    assert (judge.limit, judge.skipped, judge.in_a_row, judge.too_many) == (limit, 3, 2, False)
    judge.take(2.5)
    assert (judge.skipped, judge.in_a_row) == (3, 0)
    for _ in range(3):
        judge.skip()
    assert judge.too_many
    other = after([])
    other.load_state_dict(judge.state_dict())
    assert vars(other) | {"config": None} == vars(judge) | {"config": None}


@pytest.mark.parametrize(("name", "value"), [("spike", 0.0), ("max_bad_steps", 0)])
def test_limits_of_the_settings(name, value):
    with pytest.raises(UserError, match=rf"{name} is {value}; it must be more than 0"):
        TrainingConfig(max_steps=1, **{name: value})


# --- In a run -----------------------------------------------------------------------------------


def spoil(trainer, at, kind):
    """Let the steps ``at`` go wrong: in their loss, in one gradient, or by a spike."""
    loss = trainer.model.loss

    def spoiled(tokens, targets):
        total = loss(tokens, targets)
        if trainer.step + 1 not in at:
            return total
        if kind == "gradient":
            total.register_hook(lambda gradient: gradient * INF)
            return total
        return total * {"nan": NAN, "inf": INF, "spike": 40.0}[kind]

    trainer.model.loss = spoiled
    return trainer


def warm(trainer):
    """Let spikes be seen from the first step on: above 18 bits per byte."""
    state = {"skipped": 0, "in_a_row": 0, "taken": 100, "mean": 8.0, "variance": 1.0}
    trainer.bad_steps.load_state_dict(state)
    return trainer


class StopAt(Reporter):
    """Ends a run after a step, as Ctrl-C does."""

    def __init__(self, step, trainer):
        self.step, self.trainer = step, trainer

    def on_step(self, step, *_):
        self.trainer.stop_requested = step == self.step


def everything(trainer):
    """Copies of all that a step may change but the place in the data."""
    return {
        "model": copy.deepcopy(trainer.model.state_dict()),
        "average": {name: w.clone() for name, w in trainer.average.weights.items()},
        "average_steps": trainer.average.steps,
        "moments": copy.deepcopy([dict(o.state_dict()["state"]) for o in trainer.optimisers]),
    }


def assert_equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("kind", ["nan", "inf", "gradient", "spike"])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_nothing_of_a_skipped_step_remains(kind, optimiser, corpus, tmp_path):
    trainer = spoil(
        make_trainer(corpus, tmp_path / "run", make_config(optimiser=optimiser)), {4, 5}, kind
    )
    for _ in range(3):
        trainer.take_step()
    warm(trainer)
    before, place, limit = everything(trainer), trainer.loader.state_dict(), trainer.bad_steps.limit
    for _ in range(2):
        trainer.take_step()
    assert_equal(everything(trainer), before)
    assert trainer.bad_steps.limit == limit
    assert (trainer.step, trainer.bad_steps.skipped, trainer.bad_steps.in_a_row) == (5, 2, 2)
    assert trainer.tokens == 5 * 3 * 2 * 31
    assert trainer.loader.state_dict()["index"] == place["index"] + 2 * 3 * 2
    trainer.take_step()
    assert trainer.bad_steps.in_a_row == 0
    assert not torch.equal(
        trainer.model.state_dict()["head.weight"], before["model"]["head.weight"]
    )
    assert all(w.isfinite().all() for w in trainer.model.state_dict().values())


def test_the_log_counts_them_and_stays_json(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path / "run", make_config(max_steps=6, optimiser="muon"))
    spoil(trainer, {2, 5}, "nan").run()
    lines = read_metrics(tmp_path / "run", "step", "skipped_steps", "train_bpb", "grad_norm")
    assert [line[:2] for line in lines] == [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]
    for step, _, bpb, norm in lines:
        assert (bpb is None, norm is None) == (step in (2, 5),) * 2
        assert bpb is None or (0 < bpb < 9 and 0 < norm < 1e6)
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    rates = read_metrics(tmp_path / "run", "lr", "matrix_lr", "loss_scale")
    assert all(matrix == pytest.approx(lr / 3e-3 * 0.02) for lr, matrix, _ in rates)
    assert all(scale is None for *_, scale in rates)


def test_figures_reach_the_events(corpus, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(max_steps=3, optimiser="muon", precision="fp16")
    spoil(make_trainer(corpus, tmp_path / "run", config), {2}, "nan").run()
    events = EventAccumulator(str(tmp_path / "run" / "events")).Reload()
    assert [e.value for e in events.Scalars("skipped_steps")] == [0, 1, 1]
    assert [e.step for e in events.Scalars("grad_norm")] == [1, 3]
    assert [e.value for e in events.Scalars("loss_scale")] == [65536] * 3
    assert {"lr", "matrix_lr", "train_bpb"} <= set(events.Tags()["scalars"])


def test_the_norm_is_the_largest_since_the_last_line(corpus, tmp_path):
    for n in (1, 3):
        make_trainer(corpus, tmp_path / str(n), make_config(max_steps=6, log_every=n)).run()
    norms = [norm for (norm,) in read_metrics(tmp_path / "1", "grad_norm")]
    assert read_metrics(tmp_path / "3", "step", "grad_norm") == [
        (3, max(norms[:3])),
        (6, max(norms[3:])),
    ]


@pytest.mark.parametrize("stop", [8, 9, 11])  # 9: between two bad steps
def test_a_run_with_skipped_steps_resumes_bit_exactly(stop, corpus, tmp_path):
    bad = {4, 5, 9, 10, 13}
    whole = spoil(make_trainer(corpus, tmp_path / "whole"), bad, "spike")
    warm(whole).run()
    first = spoil(make_trainer(corpus, tmp_path / "parts"), bad, "spike")
    first.reporter = StopAt(stop, first)
    assert warm(first).run().step == stop
    assert find_checkpoint(tmp_path / "parts").name == f"step-{stop:08}"
    second = make_trainer(corpus, tmp_path / "parts", resume=True)
    spoil(second, bad, "spike").run()
    names = ("step", "train_bpb", "valid_bpb", "lr", "grad_norm", "skipped_steps")
    assert read_metrics(tmp_path / "parts", *names) == read_metrics(tmp_path / "whole", *names)
    assert read_metrics(tmp_path / "whole", "skipped_steps")[-1] == (5,)
    assert second.bad_steps.state_dict() == whole.bad_steps.state_dict()
    assert_equal(everything(second), everything(whole))


def test_stopped_among_bad_steps_it_takes_no_older_checkpoint_away(corpus, tmp_path):
    config = make_config(keep_last=1, save_every=5, eval_every=100)
    trainer = spoil(make_trainer(corpus, tmp_path / "run", config), {6, 7, 8}, "nan")
    trainer.reporter = StopAt(7, trainer)
    trainer.run()
    assert [path.name[-1] for path in list_checkpoints(tmp_path / "run")] == ["5", "7"]


def test_a_checkpoint_without_the_new_state_resumes(corpus, tmp_path):
    config = make_config(max_steps=5)
    make_trainer(corpus, tmp_path / "run", config).run()
    saved = read_checkpoint(tmp_path / "run", with_training_state=True)
    state = dict(saved.training_state)
    for name in ("bad_steps", "loss_scale", "grad_norm"):
        del state[name]
    save_checkpoint(
        tmp_path / "run",
        step=5,
        model_state=saved.model_state,
        ema_state=saved.ema_state,
        config=config,
        tokenizer=saved.tokenizer,
        training_state=state,
        keep_last=2,
        valid_bpb=None,
    )
    resumed = make_trainer(corpus, tmp_path / "run", make_config(max_steps=7), resume=True)
    assert resumed.run().step == 7
    assert read_metrics(tmp_path / "run", "skipped_steps")[-1] == (0,)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nan", "its loss is nan"),
        ("gradient", "the norm of its gradient is (nan|inf)"),
        ("spike", "its loss, .* bits per byte, is a spike above"),
    ],
)
def test_too_many_in_a_row_end_a_run_with_the_reason(kind, reason, corpus, tmp_path):
    config = make_config(max_bad_steps=4, eval_every=6)
    trainer = spoil(make_trainer(corpus, tmp_path / "run", config), {2, 3, 4, *range(9, 24)}, kind)
    warm(trainer)
    sentence = (
        rf"step 12: training stopped, as 4 bad steps came in a row \(max_bad_steps\).*{reason}"
        r".*resume with a lower --lr \(it is 0.003\) from the last good checkpoint"
        r" \(.*step-00000006\)"
    )
    with pytest.raises(UserError, match=sentence):
        trainer.run()
    # Step 10 was to be saved, and is not: nobody knows yet whether its weights are sound.
    assert find_checkpoint(tmp_path / "run").name == "step-00000006"


# --- Half precision -----------------------------------------------------------------------------


def overflow(trainer, at):
    """Let the steps ``at`` overflow under any loss scale above 1, in one matrix's gradient."""
    weight = trainer.model.blocks[0].feed_forward.to_out.weight

    def spoiled(gradient):
        return gradient * INF if trainer.step + 1 in at else gradient

    weight.register_hook(spoiled)
    return trainer


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_an_overflow_lowers_the_scale_and_changes_no_weight(optimiser, corpus, tmp_path):
    config = make_config(optimiser=optimiser, precision="fp16", max_bad_steps=2)
    trainer = overflow(make_trainer(corpus, tmp_path / "run", config), {2, 3, 4})
    trainer.take_step()
    before = everything(trainer)
    for _ in range(3):
        trainer.take_step()  # more than max_bad_steps: the scale is to blame
    assert_equal(everything(trainer), before)
    assert trainer.loss_scale.value == 65536 / 8
    assert (trainer.bad_steps.skipped, trainer.bad_steps.in_a_row) == (3, 0)
    trainer.take_step()
    assert not torch.equal(
        trainer.model.state_dict()["head.weight"], before["model"]["head.weight"]
    )


def test_overflows_at_the_floor_of_the_scale_end_a_run(corpus, tmp_path):
    config = make_config(precision="fp16", max_bad_steps=3, max_steps=60, eval_every=50)
    trainer = overflow(make_trainer(corpus, tmp_path / "run", config), set(range(2, 60)))
    # Sixteen halvings from 65,536 to 1, then three bad steps.
    with pytest.raises(UserError, match=r"step 20: training stopped, as 3 bad steps"):
        trainer.run()
    assert trainer.loss_scale.value == 1
    assert trainer.bad_steps.skipped == 19


def test_a_bad_loss_is_not_blamed_on_the_scale(corpus, tmp_path):
    trainer = spoil(
        make_trainer(corpus, tmp_path / "run", make_config(precision="fp16")), {2, 3}, "nan"
    )
    for _ in range(3):
        trainer.take_step()
    assert trainer.loss_scale.value == 65536
    assert trainer.loss_scale.state_dict()["_growth_tracker"] == 1


def test_a_run_in_half_precision_resumes_bit_exactly(corpus, tmp_path):
    bad = {3, 6, 7, 15}
    config = make_config(precision="fp16", optimiser="muon")
    overflow(make_trainer(corpus, tmp_path / "whole", config), bad).run()
    first = make_trainer(corpus, tmp_path / "parts", config)
    first.reporter = StopAt(8, first)
    overflow(first, bad).run()
    overflow(make_trainer(corpus, tmp_path / "parts", config, resume=True), bad).run()
    names = ("step", "train_bpb", "grad_norm", "skipped_steps", "loss_scale")
    found, expected = (read_metrics(tmp_path / name, *names) for name in ("parts", "whole"))
    assert found == expected
    assert expected[-1][-2:] == (4, 4096)
    losses = [bpb for (bpb,) in read_metrics(tmp_path / "whole", "train_bpb") if bpb]
    assert losses[-1] < losses[0] - 0.5


def test_half_precision_follows_full_precision(corpus, tmp_path):
    norms = {}
    for precision in ("fp32", "fp16"):
        trainer = make_trainer(corpus, tmp_path / precision, make_config(precision=precision))
        for _ in range(5):
            trainer.take_step()
        norms[precision] = trainer._tally.figures()
    # Gradients were divided by the scale before they were measured and clipped.
    assert norms["fp16"]["grad_norm"] == pytest.approx(norms["fp32"]["grad_norm"], rel=0.02)
    assert norms["fp16"]["train_bpb"] == pytest.approx(norms["fp32"]["train_bpb"], rel=1e-3)


def test_no_other_precision_has_a_scale():
    for precision in ("fp32", "bf16"):
        scale = LossScale(precision, torch.device("cpu"))
        loss = torch.ones((), requires_grad=True)
        assert scale.scaled(loss) is loss
        assert (scale.value, scale.state_dict(), scale.lower()) == (None, {}, False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_on_a_gpu(precision, corpus, tmp_path):
    config = make_config(precision=precision, optimiser="muon", device="cuda")
    config = replace(config, model=replace(config.model, engine="views"))
    (tmp_path / "run").mkdir()
    place = dict(device=torch.device("cuda"), started=0.0)
    trainer = overflow(Trainer(config, corpus, tmp_path / "run", Reporter(), **place), {3})
    trainer.run()
    losses = [bpb for (bpb,) in read_metrics(tmp_path / "run", "train_bpb") if bpb]
    assert losses[-1] < losses[0] - 0.5
    assert read_metrics(tmp_path / "run", "skipped_steps")[-1] == (1,)
    expected = 32768 if precision == "fp16" else None
    assert read_metrics(tmp_path / "run", "loss_scale")[-1] == (expected,)
