import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sparse_tx.config import SamplingConfig
from sparse_tx.errors import UserError
from sparse_tx.generation import draw, next_token_probabilities


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
