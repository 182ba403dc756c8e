"""Row-wise Adagrad against its formula."""

from copy import deepcopy

import torch
from torch import Tensor

from sparse_tx.training.row_adagrad import RowAdagrad


def sparse(rows: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.sparse_coo_tensor(rows[None], values, shape, check_invariants=True)


def test_steps_follow_the_formula():
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(11, 5, dtype=torch.float64))
    expected, seen = table.detach().clone(), torch.zeros(11, dtype=torch.float64)
    optimiser = RowAdagrad([table], lr=0.3)
    for step in range(4):
        rows = torch.tensor([2, 7, 2, step])  # one row twice in a step
        values = torch.randn(4, 5, dtype=torch.float64)
        table.grad = sparse(rows, values, table.shape)
        optimiser.step()
        gradient = torch.zeros_like(expected).index_add_(0, rows, values)
        for row in rows.unique():
            seen[row] += gradient[row].square().mean()
            expected[row] -= 0.3 * gradient[row] / seen[row].sqrt()
        assert torch.allclose(table.detach(), expected, atol=1e-12, rtol=0)


def test_rows_without_gradient_stay_and_a_zero_gradient_moves_nothing():
    table = torch.nn.Parameter(torch.ones(3, 2))
    optimiser = RowAdagrad([table], lr=1.0)
    table.grad = sparse(torch.tensor([1]), torch.zeros(1, 2), (3, 2))
    optimiser.step()
    assert torch.equal(table.detach(), torch.ones(3, 2))


def test_the_scale_of_the_loss_does_not_matter():
    results = []
    for scale in (1.0, 1024.0):
        table = torch.nn.Parameter(torch.zeros(3, 2))
        optimiser = RowAdagrad([table], lr=0.1)
        for _ in range(3):
            values = scale * torch.tensor([[1.0, -2.0]])
            table.grad = sparse(torch.tensor([2]), values, (3, 2))
            optimiser.step()
        results.append(table.detach())
    assert torch.equal(*results)


def test_state_survives_saving():
    table = torch.nn.Parameter(torch.zeros(3, 2))
    optimiser = RowAdagrad([table], lr=0.1)
    table.grad = sparse(torch.tensor([2]), torch.ones(1, 2), (3, 2))
    optimiser.step()
    other = RowAdagrad([torch.nn.Parameter(table.detach().clone())], lr=0.1)
    other.load_state_dict(deepcopy(optimiser.state_dict()))
    copy = other.param_groups[0]["params"][0]
    for moved, by in ((table, optimiser), (copy, other)):
        moved.grad = sparse(torch.tensor([2]), torch.ones(1, 2), (3, 2))
        by.step()
    assert torch.equal(table.detach(), copy.detach())
