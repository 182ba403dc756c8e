from itertools import islice

import pytest
import torch

from sparse_tx.config import SamplingConfig
from sparse_tx.errors import UserError
from sparse_tx.generation import RecomputeDecoder, first_kept, generate


def text(model, prompt, **options):
    """(num_samples, length) as lists."""
    return torch.stack(list(generate(model, prompt, **options)), dim=1).tolist()


def test_a_seed_decides_every_token(model):
    first = text(model, [1, 2], length=40, seed=3)
    assert text(model, [1, 2], length=40, seed=3) == first
    assert text(model, [1, 2], length=40, seed=4) != first


def test_samples_do_not_depend_on_how_many_there_are(model):
    together = text(model, [4], length=30, seed=10, num_samples=5)
    assert len({tuple(sample) for sample in together}) == 5
    for n, sample in enumerate(together):
        assert text(model, [4], length=30, seed=10 + n) == [sample]
    assert text(model, [4], length=30, seed=10, num_samples=3) == together[:3]


def test_temperature_0_takes_the_most_probable_token_of_the_whole_prefix(model):
    [made] = text(model, [3, 1], length=4, settings=SamplingConfig(temperature=0))
    prefix = [model.config.vocab_size, 3, 1]
    for token in made:
        assert model(torch.tensor([prefix]))[0, -1].argmax() == token
        prefix.append(token)


@pytest.mark.parametrize("prompt", [[], torch.tensor([], dtype=torch.long), (), [2, 0]])
def test_the_start_symbol_comes_first(model, prompt):
    text(model, prompt, length=1, num_samples=2)
    assert model.inputs == [[[11, *list(prompt)]] * 2]


def test_first_kept_drops_half_whenever_the_context_is_full():
    assert [first_kept(n, 7) for n in range(14)] == [0] * 7 + [3] * 3 + [6] * 3 + [9]
    assert [first_kept(n, 8) for n in range(14)] == [0] * 8 + [4] * 4 + [8] * 2
    assert [first_kept(n, 1) for n in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("prompt_length", [0, 1, 5, 6, 7, 20])
@pytest.mark.parametrize("seq_len", [1, 2, 7, 8])
def test_past_the_context_the_oldest_half_is_dropped(model, prompt_length, seq_len):
    model.config.seq_len = seq_len
    prompt = torch.arange(prompt_length) % 11
    [made] = text(model, prompt, length=25)
    written = [*prompt.tolist(), *made]
    for step, [seen] in enumerate(model.inputs):
        end = prompt_length + step
        assert seen == [11, *written[first_kept(end, seq_len) : end]]
        assert len(seen) <= seq_len
        assert len(seen) == 1 + end or len(seen) > seq_len - max(1, seq_len // 2)


def test_a_long_prompt_goes_on_as_if_it_had_been_generated(model):
    made = text(model, [5], length=30, seed=1)[0]
    grown, given = RecomputeDecoder(model), RecomputeDecoder(model)
    grown.prefill(torch.tensor([[5]]))
    for n in range(30):
        by_steps = grown.decode_one_token(torch.tensor([made[n]]))
        at_once = given.prefill(torch.tensor([[5, *made[: n + 1]]]))
        assert torch.equal(by_steps, at_once)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode_also_between_tokens(model, training):
    model.train(training)
    for _ in generate(model, [1], length=3):
        assert model.training is training
    assert model.modes == [False] * 3


def test_the_mode_is_restored_when_the_model_fails(model):
    model.train()
    model.config.seq_len = 1000
    steps = generate(model, [1], length=3)
    next(steps)
    model.hidden = lambda tokens: 1 / 0
    with pytest.raises(ZeroDivisionError):
        next(steps)
    assert model.training


def test_tokens_come_one_at_a_time_and_are_ordinary_tensors(model):
    steps = generate(model, [1], length=10**9, num_samples=3)
    tokens = list(islice(steps, 2))
    assert len(model.inputs) == 2
    for token in tokens:
        assert (token.shape, token.dtype) == ((3,), torch.int64)
        assert not token.is_inference() and not token.requires_grad


def test_global_random_state_is_left_alone(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    text(model, [1], length=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([11], {}, "token 11 of the prompt: the model's tokens are 0 to 10"),
        ([3, -1], {}, "token -1"),
        ([1], {"length": 0}, "length is 0"),
        ([1], {"num_samples": 0}, "num_samples is 0"),
        ([1], {"seed": -1}, "seed is -1"),
        ([1], {"seed": 2**63}, "seed is 9223372036854775808"),
    ],
)
def test_mistakes_are_answered_at_the_call(model, prompt, options, message):
    with pytest.raises(UserError, match=message):
        generate(model, prompt, **{"length": 1, **options})
    assert model.inputs == []


def test_broken_weights_are_named(model):
    model.table.data.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        next(generate(model, [1], length=1))


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_the_penalty_looks_at_prompt_and_continuation(model, window):
    settings = SamplingConfig(repetition_penalty=2.5, repetition_window=window, temperature=0.7)
    prompt, seed = [4, 0, 4, 9, 1, 1, 3, 2, 7], 12
    [made] = text(model, prompt, length=20, settings=settings, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    written = list(prompt)
    for token in made:
        inputs = [11, *written[first_kept(len(written), 7) :]]
        logits = model(torch.tensor([inputs]))[0, -1].tolist()
        for seen in set(written if window is None else written[-window:]):
            logits[seen] *= 1 / 2.5 if logits[seen] > 0 else 2.5
        distribution = torch.tensor(logits, dtype=torch.float64).div(0.7).softmax(-1)
        number = torch.rand(1, dtype=torch.float64, generator=generator)
        assert token == torch.searchsorted(distribution.cumsum(-1), number).item()
        written.append(token)


def test_a_penalty_changes_what_is_made(model):
    plain, penalised = (
        text(model, [1], length=60, settings=SamplingConfig(repetition_penalty=penalty))
        for penalty in (1.0, 50.0)
    )
    assert plain != penalised
