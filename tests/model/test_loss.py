"""The chunked loss under a loss scale."""

import pytest
import torch

from sparse_tx.model.loss import chunked_cross_entropy


def gradients(hidden, weight, targets, scale):
    hidden, weight = (x.clone().requires_grad_() for x in (hidden, weight))
    total = chunked_cross_entropy(hidden, weight, targets, chunk=7)
    (total / len(targets) * scale).backward()
    return hidden.grad, weight.grad


@pytest.fixture
def problem():
    torch.manual_seed(0)
    return torch.randn(31, 5), torch.randn(13, 5), torch.randint(13, (31,))


@pytest.mark.parametrize("exponent", [16, 30, 60])
def test_a_scale_that_is_a_power_of_two_rounds_nothing(exponent, problem):
    for plain, scaled in zip(
        gradients(*problem, 1.0), gradients(*problem, 2.0**exponent), strict=True
    ):
        assert torch.equal(scaled / 2.0**exponent, plain)


def test_half_precision_overflows_and_vanishes_only_where_the_gradient_does(problem):
    hidden, weight, targets = problem
    hidden, weight = hidden.half(), weight * 1e-6
    exact, _ = gradients(hidden.float(), weight, targets, 1.0)
    # Unscaled it is below the smallest half; the scale, even divided by 31, is above the largest.
    assert exact.abs().max() < 2**-20
    scale = 2.0**24
    assert scale / 31 > torch.finfo(torch.half).max
    found, _ = gradients(hidden, weight, targets, scale)
    assert found.dtype == torch.half
    assert (found.float() / scale - exact).abs().max() < 1e-3 * exact.abs().max()
