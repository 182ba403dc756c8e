"""What the plan of ``views`` computes and allocates, looked at directly."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_tx import parse_pattern, sparse_attention
from sparse_tx.attention.views.plan import plan
from tests.helpers import HEADS, paper_set

CPU = torch.device("cpu")


@pytest.mark.parametrize("pattern", [*HEADS, "local:8/strided:8"])
@pytest.mark.parametrize("T", [1, 40, 301])
def test_every_allowed_pair_is_computed_exactly_once(pattern, T):
    heads = parse_pattern(pattern).layer(0).heads(2)
    position = torch.arange(T).view(1, 1, T, 1).expand(1, 2, T, 1)  # (B, H, T, D)
    computed = [[], []]
    for sweep in plan(heads, 1, T, 64, CPU):
        view = sweep.view(position)[0, :, 0, :, 0]  # (G, M): the position of each row
        head = range(2)[sweep.heads][0]
        prefix = sweep.prefix if sweep.prefix is not None else torch.empty(0, dtype=torch.long)
        for tile in sweep.tiles:
            for group, places in enumerate(view):
                keys = torch.cat([prefix[: tile.n_prefix], places[tile.keys]])
                bias = tile.bias[min(group, len(tile.bias) - 1), 0]
                allowed = torch.ones(len(places[tile.rows]), len(keys), dtype=torch.bool)
                allowed[:, len(keys) - bias.shape[1] :] = bias == 0
                for row, column in allowed.nonzero().tolist():
                    computed[head].append((int(places[tile.rows][row]), int(keys[column])))
    groups = pattern.split("/")
    assert len(computed[0]) == len(set(computed[0]))
    # Heads with one pattern share a sweep, which is recorded under the first of them.
    assert set(computed[0]) == paper_set(groups[0], T, head=0)
    if computed[1]:
        assert sorted(computed[1]) == sorted(paper_set(groups[-1], T, head=1))


def test_the_column_view_is_no_copy():
    x = torch.randn(1, 24, 2, 3).transpose(1, 2)  # (B, H, T, D)
    heads = parse_pattern("strided:6").layer(0).heads(2)
    (sweep,) = plan(heads, 1, 24, 64, CPU)
    view = sweep.view(x)  # (B, G, H, M, D)
    assert view.data_ptr() == x.data_ptr()
    assert torch.equal(view[0, 5, 1], x[0, 1, 5::6])


@pytest.mark.parametrize(
    "pattern", [h for h in HEADS if "1000" not in h and h not in ("dense", "strided:1")]
)
def test_tiles_do_not_grow_with_the_square(pattern):
    def largest(T):
        sweeps = plan((parse_pattern(pattern).at(0, 0, 1),), 1, T, 64, CPU)
        return max(
            sweep.groups * (tile.rows.stop - tile.rows.start) * tile.n_keys
            for sweep in sweeps
            for tile in sweep.tiles
        )

    assert largest(8192) <= max(2 * largest(4096), 1 << 19)


class LargestTensor(TorchDispatchMode):
    """Watches every operation for the largest storage it makes."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple) else (result,):
            if isinstance(x, torch.Tensor):
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize(
    "pattern",
    [
        "strided:128",
        "local:64",
        "block:100",
        "fixed:128:8",
        "local:64+strided:64",
        "block:9+strided:64",
    ],
)
def test_memory_does_not_hold_a_square(pattern):
    """The square of this length takes 256 MiB as booleans, 1 GiB as scores."""
    T = 16_384
    q = torch.randn(1, T, 1, 2).transpose(1, 2).requires_grad_()
    with LargestTensor() as largest:
        sparse_attention(q, q, q, pattern, engine="views").sum().backward()
    assert largest.bytes < 8 * 2**20
    assert q.grad.isfinite().all()
