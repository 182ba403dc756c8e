"""The loop: exact resumption, stopping, and what it leaves behind."""

import math
import time
from dataclasses import replace

import pytest
import torch

from sparse_tx.checkpoint import find_checkpoint, list_checkpoints, read_checkpoint
from sparse_tx.config import TrainingConfig
from sparse_tx.evaluation import Score
from sparse_tx.training import Reporter
from sparse_tx.training.averaging import WeightAverage
from sparse_tx.training.muon import Muon, orthogonalise
from sparse_tx.training.optimiser import clip_gradients, make_optimisers
from sparse_tx.training.schedule import share_of_peak
from tests.training.helpers import make_config, make_corpus, make_trainer, read_metrics

EXACT = (
    *("step", "tokens", "train_bpb", "valid_bpb", "lr", "final_valid_bpb"),
    *("grad_norm", "skipped_steps"),
)


LOOKUPS = dict(ngrams=(2, 3), ngram_rows=50, recall=2)


class Killed(Exception):
    pass


class KillAt(Reporter):
    """Ends the process's life, as far as the run can tell, right after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, step, *_):
        if step == self.step:
            raise Killed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    make_trainer(corpus, run_dir).run()
    return run_dir


@pytest.mark.parametrize("step", [6, 8, 12, 22])
def test_a_killed_run_resumes_bit_exactly(step, corpus, uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    with pytest.raises(Killed):
        make_trainer(corpus, run_dir, reporter=KillAt(step)).run()
    torch.manual_seed(1234)  # another process has another random state
    make_trainer(corpus, run_dir, resume=True).run()
    assert read_metrics(run_dir, *EXACT) == read_metrics(uninterrupted, *EXACT)
    found, expected = (
        read_checkpoint(find_checkpoint(folder), with_training_state=True)
        for folder in (run_dir, uninterrupted)
    )
    for part in ("model_state", "ema_state"):
        for name, tensor in getattr(expected, part).items():
            assert torch.equal(getattr(found, part)[name], tensor), name
    assert torch.equal(found.training_state["random"], expected.training_state["random"])
    assert found.training_state["loader"] == expected.training_state["loader"]


def test_a_stopped_run_resumes_bit_exactly(corpus, uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    trainer = make_trainer(corpus, run_dir)

    class StopAt(Reporter):
        def on_step(self, step, *_):
            trainer.stop_requested = step >= 9

    trainer.reporter = StopAt()
    outcome = trainer.run()
    assert (outcome.step, outcome.finished) == (9, False)
    assert outcome.checkpoint.name == "step-00000009"
    outcome = make_trainer(corpus, run_dir, resume=True).run()
    assert outcome.finished
    assert read_metrics(run_dir, *EXACT) == read_metrics(uninterrupted, *EXACT)


def test_what_a_run_leaves(corpus, uninterrupted):
    steps = [step for (step,) in read_metrics(uninterrupted, "step")]
    assert steps == list(range(1, 24))
    evaluated = [s for s, bpb in read_metrics(uninterrupted, "step", "valid_bpb") if bpb]
    assert evaluated == [7, 14, 21, 23]
    names = {path.name for path in list_checkpoints(uninterrupted)}
    assert {"step-00000020", "step-00000021", "step-00000023"} <= names
    losses = [bpb for (bpb,) in read_metrics(uninterrupted, "train_bpb")]
    assert losses[0] == pytest.approx(8, abs=0.01)
    assert losses[-1] < 7
    (final, n_bytes) = read_metrics(uninterrupted, "final_valid_bpb", "final_valid_bytes")[-1]
    assert final < 8
    assert n_bytes == 500


def test_every_byte_of_a_step_is_counted(corpus, uninterrupted):
    tokens = [t for (t,) in read_metrics(uninterrupted, "tokens")]
    assert tokens == [3 * 2 * 31 * n for n in range(1, 24)]


@pytest.mark.parametrize("clip", [1.0, 0.01])
@pytest.mark.parametrize("lookups", [{}, LOOKUPS], ids=str)
def test_accumulation_equals_a_larger_batch(lookups, clip, corpus, tmp_path):
    one = make_config(batch_size=6, accumulation=1, max_steps=3, clip=clip)
    many = make_config(batch_size=1, accumulation=6, max_steps=3, clip=clip)
    losses = []
    for name, config in (("one", one), ("many", many)):
        config = replace(config, model=replace(config.model, dropout=0.0, **lookups))
        trainer = make_trainer(corpus, tmp_path / name, config)
        losses.append([trainer.take_step() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_loss_that_is_not_finite_in_an_evaluation_stops_the_run(corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path / "run", make_config(optimiser="muon", ema=0.0))

    class BreakAt(Reporter):
        def on_checkpoint(self, step, path):
            if step == 5:
                trainer.recipe = replace(trainer.recipe, eval_every=6)

    take_step = trainer.take_step

    def take_step_and_break():
        take_step()
        if trainer.step == 6:
            trainer.model.token_embedding.weight.data.fill_(float("nan"))

    trainer.take_step = take_step_and_break
    trainer.reporter = BreakAt()
    sentence = (
        r"step 6: the loss of the validation text is not finite.*without saving.*--lr"
        r" \(it is 0.003\) and --matrix_lr \(it is 0.02\).*step-00000005"
    )
    with pytest.raises(ValueError, match=sentence):
        trainer.run()
    assert find_checkpoint(tmp_path / "run").name == "step-00000005"


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(broken, corpus, tmp_path):
    trainer = make_trainer(corpus, tmp_path / "run", make_config(max_bad_steps=3))

    class BreakAt(Reporter):
        def on_step(self, step, *_):
            if step == 11:
                trainer.model.token_embedding.weight.data.fill_(broken)

    trainer.reporter = BreakAt()
    sentence = r"step 14: training stopped, as 3 bad steps.*its loss is nan; .*step-00000010"
    with pytest.raises(ValueError, match=sentence):
        trainer.run()
    last = read_checkpoint(find_checkpoint(tmp_path / "run"))
    assert last.step == 10
    assert all(tensor.isfinite().all() for tensor in last.model_state.values())


def test_time_ends_a_run_and_moves_its_learning_rate(corpus, tmp_path):
    minutes = 0.05
    config = make_config(max_steps=None, max_minutes=minutes, warmup_steps=0)
    begin = time.monotonic()
    outcome = make_trainer(corpus, tmp_path / "run", config).run()
    assert outcome.finished
    assert outcome.result is not None
    assert time.monotonic() - begin < 60 * minutes + 30  # on a machine however busy
    rates = [lr for (lr,) in read_metrics(tmp_path / "run", "lr")]
    assert rates == sorted(rates, reverse=True)


def test_the_last_evaluation_takes_a_quarter_of_a_short_limit(corpus, tmp_path, monkeypatch):
    from sparse_tx.training import clock
    from sparse_tx.training import trainer as module

    asked = []

    def slow(*args, is_time_up, max_bytes, begun, **others):
        """Each token takes 1 / 50 second, one at a time."""
        done = begun.tokens if begun else 0
        while done < max_bytes and not (done and is_time_up()):
            time.sleep(0.02)
            done += 1
        asked.append((max_bytes, done))
        return Score(float(done), done, done, 31, done == max_bytes, (done, float(done)))

    monkeypatch.setattr(module, "score", slow)
    monkeypatch.setattr(clock, "_CLOSING_SECONDS", 0.5)
    settings = dict(max_steps=None, eval_every=10**6, save_every=10**6, sample_length=0)
    limited = make_config(**settings, max_minutes=0.1, eval_bytes=30, final_eval_bytes=400)
    outcome = make_trainer(corpus, tmp_path / "run", limited).run()
    assert asked[0] == (30, 30)
    assert 30 <= outcome.result.bytes <= 76  # a quarter of 6 seconds, of 50 tokens each
    (figures,) = read_metrics(tmp_path / "run", "valid_bpb", "final_valid_bytes")[-1:]
    assert figures == (pytest.approx(1 / math.log(2)), outcome.result.bytes)
    # Of too few bytes for checkpoints to be compared by.
    limited = make_config(**settings, max_minutes=0.1, eval_bytes=300, final_eval_bytes=400)
    outcome = make_trainer(corpus, tmp_path / "shorter", limited).run()
    assert outcome.result.bytes < 300
    assert read_metrics(tmp_path / "shorter", "valid_bpb")[-1] == (None,)


def test_steps_decide_the_learning_rate_where_both_limits_are_given(corpus, tmp_path):
    both = make_config(max_steps=5, max_minutes=60.0)
    make_trainer(corpus, tmp_path / "run", both).run()
    rates = [lr for (lr,) in read_metrics(tmp_path / "run", "lr")]
    expected = [3e-3 * share_of_peak(both.training, step, step / 5) for step in range(5)]
    assert rates == expected


def test_other_data_is_refused(corpus, tmp_path):
    make_trainer(corpus, tmp_path / "run", make_config(max_steps=5)).run()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "text.txt").write_bytes(b"something else " * 2000)
    from sparse_tx.data import prepare_corpus

    other = prepare_corpus(str(tmp_path / "other" / "text.txt"), cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"is not what .* was trained on"):
        make_trainer(other, tmp_path / "run", make_config(max_steps=5), resume=True)


def test_text_tokenizers_count_bytes(tmp_path):
    corpus = make_corpus(tmp_path, tokenizer="bpe", vocab_size=300)
    from dataclasses import replace

    config = make_config(max_steps=2)
    config = replace(config, model=replace(config.model, vocab_size=corpus.tokenizer.vocab_size))
    trainer = make_trainer(corpus, tmp_path / "run", config)
    # A uniform guess costs log2(V) bits per token, however many bytes a token stands for.
    tokens, n_bytes = len(corpus.valid), corpus.n_bytes["valid"]
    assert tokens < n_bytes
    expected = math.log2(corpus.tokenizer.vocab_size) * tokens / n_bytes
    assert trainer.evaluate(None).bpb == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rate(schedule):
    config = TrainingConfig(max_steps=100, warmup_steps=9, final_lr_share=0.1, schedule=schedule)
    assert share_of_peak(config, 0, 0.0) == pytest.approx(0.1)
    assert share_of_peak(config, 9, 0.0) == pytest.approx(1.0)
    assert share_of_peak(config, 50, 0.5) == pytest.approx(0.55)
    assert share_of_peak(config, 99, 1.0) == pytest.approx(0.1)
    assert share_of_peak(config, 99, 1.7) == pytest.approx(0.1)
    quarter = (1 + math.cos(math.pi / 4)) / 2 if schedule == "cosine" else 0.75
    assert share_of_peak(config, 25, 0.25) == pytest.approx(0.1 + 0.9 * quarter)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_every_parameter_is_moved_once_and_only_matrices_decay(optimiser, corpus, tmp_path):
    model = make_trainer(corpus, tmp_path / "run").model
    names = {id(p): name for name, p in model.named_parameters()}
    decay_of, by_muon = {}, set()
    for part in make_optimisers(model, make_config(optimiser=optimiser).training):
        for group in part.param_groups:
            for parameter in group["params"]:
                name = names.pop(id(parameter))
                decay_of[name] = group["weight_decay"]
                if isinstance(part, Muon):
                    by_muon.add(name)
    assert not names
    for name, decay in decay_of.items():
        is_matrix = name.endswith(".weight") and "norm" not in name and "embedding" not in name
        assert decay == (0.01 if is_matrix else 0.0), name
        assert (name in by_muon) == (
            optimiser == "muon" and is_matrix and name.startswith("blocks")
        )


@pytest.mark.parametrize("shape", [(3, 5, 11), (2, 31, 7), (1, 8, 24)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * 100
    found = orthogonalise(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert found.shape == matrices.shape
    values = u.transpose(1, 2) @ found @ v.transpose(1, 2)  # diagonal, if the vectors are kept
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-3


def test_muon_by_hand():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 3))
    other = torch.nn.Parameter(torch.randn(6, 3))
    start, momentum = weight.detach().clone(), torch.zeros(6, 3)
    optimiser = Muon([other, weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    for _ in range(3):
        weight.grad, other.grad = torch.randn(6, 3), torch.randn(6, 3)
        momentum = 0.9 * momentum + 0.1 * weight.grad
        update = orthogonalise((0.1 * weight.grad + 0.9 * momentum)[None])[0]
        start = start * (1 - 0.1 * 0.5) - 0.1 * 2**0.5 * update
        optimiser.step()
    assert torch.allclose(weight, start, atol=1e-5)


@pytest.mark.parametrize("lookups", [{}, LOOKUPS], ids=str)
@pytest.mark.parametrize("length_warmup", ["", "3:0.8"])
def test_a_run_by_muon_resumes_bit_exactly(lookups, length_warmup, corpus, tmp_path):
    config = make_config(optimiser="muon", max_steps=9, length_warmup=length_warmup)
    config = replace(config, model=replace(config.model, **lookups))
    make_trainer(corpus, tmp_path / "whole", config).run()
    with pytest.raises(Killed):
        make_trainer(corpus, tmp_path / "parts", config, reporter=KillAt(6)).run()
    make_trainer(corpus, tmp_path / "parts", config, resume=True).run()
    found, expected = (read_metrics(tmp_path / name, *EXACT) for name in ("parts", "whole"))
    assert found == expected
    found, expected = (
        read_checkpoint(find_checkpoint(tmp_path / name)).model_state for name in ("parts", "whole")
    )
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_clipping_scales_what_is_sparse_with_the_rest(corpus, tmp_path):
    config = make_config()
    model = make_trainer(
        corpus, tmp_path / "run", replace(config, model=replace(config.model, **LOOKUPS))
    ).model
    torch.nn.init.normal_(model.head_weight)
    tokens = torch.arange(31)[None]
    model.loss(tokens, tokens).backward()
    before = {name: p.grad.to_dense().clone() for name, p in model.named_parameters()}
    norm = clip_gradients(model, 0.5)
    assert norm > 0.5
    for name, parameter in model.named_parameters():
        expected = before[name] * 0.5 / norm
        assert torch.allclose(parameter.grad.to_dense(), expected, rtol=1e-4, atol=1e-9), name


def test_the_average_follows_the_weights():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = WeightAverage(model, 0.5)
    expected = 1.0
    for step in range(1, 30):
        model.weight.data.fill_(float(step))
        average.update(model)
        decay = min(0.5, step / (step + 9))
        expected = decay * expected + (1 - decay) * step
        assert average.weights["weight"].item() == pytest.approx(expected)
    with average.in_place_of(model):
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 29
