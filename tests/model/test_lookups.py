"""N-grams and recall against plain loops, and what they may not see."""

import pytest
import torch
from torch import Tensor

from sparse_tx.config import ModelConfig
from sparse_tx.config.model import RECALL_LENGTHS
from sparse_tx.errors import UserError
from sparse_tx.model import GPT
from sparse_tx.model.lookups import Lookups, _SumOfRows, ngram_rows, recall


def draw(B: int, T: int, vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randint(0, vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))


def recall_by_loop(row: list[int], least: int) -> list[tuple[int, int]]:
    """For each position, what followed the latest earlier match, and how much longer it is."""
    found = []
    for t in range(len(row)):
        answer = (None, -1)
        for p in range(t - 1, least - 2, -1):
            if row[p - least + 1 : p + 1] == row[t - least + 1 : t + 1]:
                longer = 0
                while (
                    longer < RECALL_LENGTHS - 1
                    and p - least - longer >= 0
                    and row[p - least - longer] == row[t - least - longer]
                ):
                    longer += 1
                answer = (row[p + 1], longer)
                break
        found.append(answer)
    return found


@pytest.mark.parametrize("T", [1, 2, 3, 64, 211])
@pytest.mark.parametrize("least", [1, 2, 5])
@pytest.mark.parametrize("vocab_size", [2, 7])
def test_recall_is_the_latest_earlier_match(T, least, vocab_size):
    tokens = draw(3, T, vocab_size, seed=T)
    tokens[2] = 1  # one token all along: the match is as long as the text
    followed, length = recall(tokens, least)
    for b in range(3):
        for t, (token, longer) in enumerate(recall_by_loop(tokens[b].tolist(), least)):
            assert length[b, t] == longer
            if longer >= 0:
                assert followed[b, t] == token


def test_an_ngram_has_one_row_wherever_it_stands():
    T, orders, rows = 307, (1, 3, 4), 1 << 20
    tokens = draw(2, T, 5)
    found = ngram_rows(tokens, orders, rows)
    for which, order in enumerate(orders):
        by_ngram = {}
        for b in range(2):
            padded = [None] * order + tokens[b].tolist()
            for t in range(T):
                ngram = tuple(padded[t + 1 : t + 1 + order])
                row = found[b, t, which].item()
                assert which * rows <= row < (which + 1) * rows
                assert by_ngram.setdefault(ngram, row) == row
        # So many n-grams in so large a table should rarely share a row.
        assert len(set(by_ngram.values())) >= len(by_ngram) - 1


def test_hashes_spread_over_a_small_table():
    rows = ngram_rows(draw(1, 20_011, 256), (4,), 64)
    counts = torch.bincount(rows.flatten(), minlength=64)
    assert counts.min() > 200 and counts.max() < 440  # 313 on average, deviation 18


def config(**settings) -> ModelConfig:
    defaults = dict(
        vocab_size=7, seq_len=97, n_layer=2, n_head=2, n_embd=12, pattern="local:5,strided:5"
    )
    return ModelConfig(**defaults | dict(ngrams=(2, 3), ngram_rows=31, recall=3) | settings)


def test_the_embedding_is_the_sum_of_its_rows():
    lookups = Lookups(config()).double()
    torch.nn.init.normal_(lookups.table)
    tokens = draw(2, 53, 8)
    expected = lookups.table[lookups.rows(tokens)].sum(dim=2)
    assert torch.allclose(lookups(tokens), expected, atol=1e-12, rtol=0)


def test_every_row_that_can_be_asked_for_exists():
    lookups = Lookups(config())
    tokens = torch.full((1, 97), 7)  # the start symbol, the largest id; matches of all lengths
    rows = lookups.rows(tokens)
    assert rows.max() == len(lookups.table) - 1


def test_the_gradient_is_sparse_and_right():
    lookups = Lookups(config()).double()
    tokens, d_out = draw(2, 53, 7), torch.randn(2, 53, 12, dtype=torch.float64)
    lookups(tokens).backward(d_out)
    assert lookups.table.grad.is_sparse
    dense = lookups.table.detach().clone().requires_grad_()
    dense[lookups.rows(tokens)].sum(dim=2).backward(d_out)
    assert torch.allclose(lookups.table.grad.to_dense(), dense.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("t", [1, 40, 96])
def test_a_token_changes_nothing_before_it(t):
    torch.manual_seed(0)
    model = GPT(config()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tokens = draw(1, 97, 3)
    changed = tokens.clone()
    changed[0, t] = 5
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.equal(before[:, t], after[:, t])


@pytest.mark.parametrize(
    "settings", [dict(ngrams=(3, 2)), dict(ngrams=(0, 2)), dict(ngrams=(2, 2)), dict(recall=-1)]
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        config(**settings)


def test_the_gradient_of_summed_rows_has_each_row_once():
    table = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([[3, 8, 3], [0, 3, 5]])
    weights = torch.randn(2, 4, dtype=torch.float64)
    expected = torch.autograd.grad((table[rows].sum(dim=1) * weights).sum(), table)[0]

    sums = _SumOfRows.apply(table, rows)
    assert torch.allclose(sums, table[rows].sum(dim=1), atol=1e-14, rtol=0)
    found = torch.autograd.grad((sums * weights).sum(), table)[0]
    assert found.is_coalesced()
    assert found.indices().tolist() == [[0, 3, 5, 8]]
    assert torch.allclose(found.to_dense(), expected, atol=1e-14, rtol=0)
