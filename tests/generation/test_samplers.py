import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sparse_tx.config import SamplingConfig
from sparse_tx.errors import UserError
from sparse_tx.generation import Sampler, SeenTokens, draw, next_token_probabilities


def slow_probabilities(logits, temperature, top_k, top_p, min_p):
    """The filters one by one over a list of (probability, id), renormalised after each, exactly."""
    best = max(logits)
    if temperature == 0:
        return [float(i == logits.index(best)) for i in range(len(logits))]
    left = {i: Fraction(math.exp((x - best) / temperature)) for i, x in enumerate(logits)}

    def normalised(kept):
        total = sum(kept.values())
        return {i: p / total for i, p in kept.items()}

    left = normalised(left)
    order = sorted(left, key=lambda i: (-logits[i], i))
    if top_k is not None:
        order = order[:top_k]
        left = normalised({i: left[i] for i in order})
    if top_p is not None:
        kept, mass = {}, Fraction(0)
        for i in order:
            if mass >= top_p:
                break
            kept[i] = left[i]
            mass += left[i]
            assume(top_p == 1 or abs(mass - Fraction(top_p)) > 1e-9)  # a tie within rounding
        left = normalised(kept)
    if min_p is not None:
        bound = Fraction(min_p) * max(left.values())
        assume(all(abs(p - bound) > 1e-12 for p in left.values()) or min_p == 1)
        left = normalised({i: p for i, p in left.items() if p >= bound})
    return [float(left.get(i, 0)) for i in range(len(logits))]


logit = st.one_of(st.integers(-4, 4).map(float), st.floats(-30, 30))
share = st.none() | st.floats(0.01, 1) | st.just(1.0)


@given(
    st.lists(logit, min_size=1, max_size=13),
    st.sampled_from([0.0, 1e-300, 0.1, 1.0, 1.7, 1e6]),
    st.none() | st.integers(1, 15),
    share,
    share,
)
def test_filters_equal_a_slow_implementation(logits, temperature, top_k, top_p, min_p):
    expected = slow_probabilities(logits, temperature, top_k, top_p, min_p)
    settings = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    found = next_token_probabilities(torch.tensor([logits], dtype=torch.float64), settings)[0]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert found.sum().item() == pytest.approx(1, abs=1e-6)
    assert [p > 0 for p in found.tolist()] == [p > 0 for p in expected]


def probabilities(weights, **settings):
    logits = torch.tensor([weights], dtype=torch.float64).log()
    return next_token_probabilities(logits, SamplingConfig(**settings))[0].tolist()


def test_ties_go_to_the_lowest_ids():
    even = [1.0] * 10
    assert probabilities(even, temperature=0) == [1] + [0] * 9
    assert probabilities(even, top_k=3) == pytest.approx([1 / 3] * 3 + [0] * 7)
    assert probabilities([1, 2, 1, 2], top_k=3) == pytest.approx([1 / 5, 2 / 5, 0, 2 / 5])


@pytest.mark.parametrize("keep", range(1, 11))
def test_top_p_takes_no_more_than_it_needs(keep):
    found = probabilities([1.0] * 10, top_p=keep / 10)
    assert found == pytest.approx([1 / keep] * keep + [0] * (10 - keep))


def test_rounding_does_not_let_one_more_token_in():
    weights = [9, 6, 5, 5, 3, 2, 2]
    found = probabilities(weights, top_p=25 / 32)  # the first four, whose sum rounds to less
    assert found == pytest.approx([9 / 25, 6 / 25, 5 / 25, 5 / 25, 0, 0, 0])


@pytest.mark.parametrize("share", range(1, 30))
def test_rounding_does_not_lose_a_token_at_the_bound_of_min_p(share):
    assert probabilities([30, share], min_p=share / 30)[1] > 0


def test_min_p_keeps_what_is_exactly_at_its_bound():
    assert probabilities([8, 4, 2, 1], min_p=0.25)[2] > 0
    assert probabilities([8, 4, 2, 1], min_p=0.26)[2] == 0
    assert probabilities([4, 4, 2, 1], min_p=1) == pytest.approx([0.5, 0.5, 0, 0])


def test_each_filter_sees_what_the_one_before_left():
    # Of [.4, .3, .2, .1], top_k leaves [4/7, 3/7], of which the first alone has more than half.
    assert probabilities([4, 3, 2, 1], top_k=2, top_p=0.5) == [1, 0, 0, 0]
    assert probabilities([4, 3, 2, 1], top_p=0.5) == pytest.approx([4 / 7, 3 / 7, 0, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_logits_give_a_distribution(dtype):
    logits = torch.randn(5, 257, generator=torch.Generator().manual_seed(0)).mul(9).to(dtype)
    found = next_token_probabilities(logits, SamplingConfig(temperature=0.7, top_p=0.9))
    assert found.dtype == torch.float64
    assert found.sum(-1).tolist() == pytest.approx([1] * 5, abs=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite_are_refused(value, temperature):
    logits = torch.zeros(2, 3)
    logits[1, 2] = value
    with pytest.raises(UserError, match="not finite"):
        next_token_probabilities(logits, SamplingConfig(temperature=temperature))


def test_draws_follow_the_distribution():
    wanted = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0], dtype=torch.float64)
    generators = [torch.Generator().manual_seed(n) for n in range(20_000)]
    counts = draw(wanted.expand(20_000, -1), generators).bincount(minlength=6)
    assert counts[wanted == 0].tolist() == [0, 0, 0]
    assert (counts / 20_000).tolist() == pytest.approx(wanted.tolist(), abs=0.02)


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_tokens_that_are_possible(monkeypatch, number):
    monkeypatch.setattr(
        torch, "rand", lambda *shape, **_: torch.full(shape, number, dtype=torch.float64)
    )
    rows = torch.rand(7, 5) * 0
    rows[:, 1:4] = torch.tensor([0.1, 0.7, 0.2], dtype=torch.float64) / 3
    token = draw(rows, [torch.Generator()] * 7)
    assert token.tolist() == [1 if number == 0 else 3] * 7


def test_a_penalty_divides_positive_logits_of_seen_tokens_and_multiplies_negative_ones():
    logits = torch.tensor([[3.0, -1.0, 2.0, -2.0, 0.0]], dtype=torch.float64)
    seen = torch.tensor([[True, True, False, False, True]])
    for penalty in (1.5, 0.5):
        settings = SamplingConfig(repetition_penalty=penalty)
        found = next_token_probabilities(logits, settings, seen)[0].tolist()
        weights = [math.exp(x) for x in (3 / penalty, -1 * penalty, 2, -2, 0)]
        assert found == pytest.approx([w / sum(weights) for w in weights], abs=1e-15)


def test_a_penalty_comes_before_temperature_and_the_other_filters():
    logits = torch.tensor([[3.0, 2.0, -1.0, -1.2]])
    seen = torch.tensor([[True, False, True, False]])  # 1, 2, -3, -1.2 with a penalty of 3
    settings = SamplingConfig(repetition_penalty=3, temperature=0)
    assert next_token_probabilities(logits, settings, seen).argmax() == 1
    settings = SamplingConfig(repetition_penalty=3, temperature=0.5, top_k=3)
    found = next_token_probabilities(logits, settings, seen)[0].tolist()
    weights = [math.exp(x / 0.5) for x in (1, 2)] + [0, math.exp(-1.2 / 0.5)]
    assert found == pytest.approx([w / sum(weights) for w in weights], rel=1e-6)


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e300, 1.7e308])
@pytest.mark.parametrize("temperature", [0, 1e-300, 1.0])
def test_no_penalty_makes_a_distribution_that_is_none(penalty, temperature):
    logits = torch.tensor([[1e30, 5.0, 0.0, -5.0, -1e30]] * 2)
    seen = torch.tensor([[True] * 5, [True, False, True, False, True]])
    settings = SamplingConfig(repetition_penalty=penalty, temperature=temperature)
    found = next_token_probabilities(logits, settings, seen)
    assert found.sum(-1).tolist() == pytest.approx([1, 1])
    assert (found >= 0).all()


def test_a_penalty_without_the_tokens_of_the_text_is_refused():
    with pytest.raises(UserError, match="repetition_penalty is 2"):
        next_token_probabilities(torch.zeros(1, 3), SamplingConfig(repetition_penalty=2))


texts = st.lists(st.integers(0, 4), max_size=9)
windows = st.none() | st.integers(1, 6) | st.just(10**30)


@given(st.lists(st.tuples(texts, windows), min_size=1, max_size=4), st.data())
def test_seen_tokens_are_those_of_the_end_of_each_text(begun, data):
    prompts, sizes = [list(text) for text, _ in begun], [size for _, size in begun]
    seen = SeenTokens([torch.tensor(text, dtype=torch.long) for text in prompts], sizes, 5)
    for _ in range(data.draw(st.integers(0, 12))):
        if len(prompts) > 1 and data.draw(st.booleans()):
            which = st.sampled_from(range(len(prompts)))
            rows = data.draw(st.lists(which, min_size=1, unique=True))
            seen.keep(rows)
            prompts, sizes = [prompts[row] for row in rows], [sizes[row] for row in rows]
        tokens = [data.draw(st.integers(0, 4)) for _ in prompts]
        seen.add(torch.tensor(tokens))
        for text, token in zip(prompts, tokens, strict=True):
            text.append(token)
    expected = [
        [token in (text if size is None else text[-size:]) for token in range(5)]
        for text, size in zip(prompts, sizes, strict=True)
    ]
    assert seen.mask().tolist() == expected


def test_texts_of_unlike_settings_are_sampled_as_if_alone():
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(5, 4, 13, generator=generator, dtype=torch.float64) * 2  # of five steps
    settings = [
        SamplingConfig(),
        SamplingConfig(repetition_penalty=1.9),
        SamplingConfig(temperature=0.4, top_p=0.7),
        SamplingConfig(repetition_penalty=1.9),
    ]
    prompts = [torch.tensor(text, dtype=torch.long) for text in ([], [3, 1], [2], [9])]
    together = Sampler(prompts, settings, [5, 6, 7, 6], 13)
    alone = [
        Sampler([prompt], [each], [seed], 13)
        for prompt, each, seed in zip(prompts, settings, [5, 6, 7, 6], strict=True)
    ]
    rows = [0, 1, 2, 3]
    for step in logits:
        expected = [int(alone[row].draw(step[row : row + 1])) for row in rows]
        assert together.draw(step[rows]).tolist() == expected
        if len(rows) > 1:
            rows = rows[:0:-1]  # the first leaves, and the others change places
            together.keep(range(len(rows), 0, -1))
