"""Embeddings of what stands before a token, found by look-up: they cost memory, no products."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_tx.config import ModelConfig
from sparse_tx.config.model import RECALL_LENGTHS

# An odd multiplier near 2^64 / golden ratio, as a signed number: products wrap around.
_MULTIPLIER = -7046029254386353131


def ngram_rows(tokens: Tensor, orders: tuple[int, ...], rows: int) -> Tensor:
    """Hash the n-gram that ends at each token: a row of a table of its own for each order.

    An n-gram that begins before the text counts as one of its own.

    Args:
        tokens: ``(B, T)`` int64.
        orders: lengths of the n-grams, ascending.
        rows: of each table.

    Returns:
        ``(B, T, len(orders))`` int64, the tables one after the other.
    """
    T = tokens.shape[1]
    hashed = torch.zeros_like(tokens)
    found = []
    for back in range(orders[-1]):
        # Tokens are counted from 1, so that 0 stands before the text.
        earlier = F.pad(tokens + 1, (back, 0))[:, :T]
        hashed = (hashed + earlier) * _MULTIPLIER
        hashed = hashed ^ (hashed >> 29 & (1 << 35) - 1)  # upper bits reach the lower ones
        if back + 1 in orders:
            found.append((hashed >> 7 & (1 << 31) - 1) % rows + len(found) * rows)
    return torch.stack(found, dim=-1)


def hash_further(hashed: int, token: int) -> int:
    """One round of the hash in ``ngram_rows``, of ints: take in one earlier token.

    Args:
        hashed: of the later tokens of the n-gram; 0 at first.
        token: its id and 1; 0 before the text.
    """
    hashed = (hashed + token) * _MULTIPLIER & (1 << 64) - 1
    return hashed ^ hashed >> 29


def row_of_hash(hashed: int) -> int:
    """The row that ``ngram_rows`` makes of a hash, before it is reduced to the table's size."""
    return hashed >> 7 & (1 << 31) - 1


def recall(tokens: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Find where the last tokens stood before, and what followed them there.

    Of several earlier places, the latest counts. Everything is inside a row of ``tokens``, before
    the position that looks: nothing later is read.

    Args:
        tokens: ``(B, T)`` int64.
        least: how many tokens have to agree at least.

    Returns:
        the token that followed, and by how many tokens the match is longer than ``least``, up to
        ``RECALL_LENGTHS - 1``; -1 where there is none. Both ``(B, T)`` int64.
    """
    B, T = tokens.shape
    # Equal n-grams lie side by side once sorted, in their order of old: the one before is the
    # latest earlier one. A row in common may be chance, which the comparison below finds out.
    order = ngram_rows(tokens, (least,), 1 << 31)[..., 0].argsort(dim=1, stable=True)
    before = torch.zeros_like(order).scatter_(1, order[:, 1:], order[:, :-1])
    at = torch.arange(T, device=tokens.device).expand(B, T)
    agree = before < at
    length = torch.full_like(before, -least)
    for back in range(least + RECALL_LENGTHS - 1):
        agree = (
            agree
            & (before >= back)
            & (tokens.gather(1, (before - back).clamp_min(0)) == F.pad(tokens, (back, 0))[:, :T])
        )
        length += agree
    followed = tokens.gather(1, (before + 1).clamp_max(T - 1))
    return followed, length.clamp_min(-1)


class _SumOfRows(torch.autograd.Function):
    """The sum of some rows of a table for each token, whose gradient holds every row once.

    Torch's own sparse gradient has a row for each time that one was read, and summing what belongs
    together is left to the optimiser, on one core. Here the reads are sorted by row, so that a
    row's gradient is a sum of tokens' gradients as a token's embedding is a sum of rows.
    """

    @staticmethod
    def forward(ctx, table, rows):
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return F.embedding_bag(rows, table, mode="sum")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_sums):
        (rows,) = ctx.saved_tensors  # (tokens, n)
        reads, order = rows.flatten().sort(stable=True)
        unique, counts = reads.unique_consecutive(return_counts=True)
        tokens, firsts = order // rows.shape[1], counts.cumsum(0) - counts
        values = F.embedding_bag(tokens, d_sums, firsts, mode="sum")  # (unique rows, C)
        gradient = torch.sparse_coo_tensor(
            unique[None], values, ctx.shape, check_invariants=False, is_coalesced=True
        )
        return gradient, None


class Lookups(nn.Module):
    """The sum of the embeddings of the n-grams that end at a token, and of what it recalls.

    All embeddings are rows of one table, of which a step reads and changes only a few: its
    gradient is sparse. It begins at zero. Which n-grams there are, how many rows each length has
    and what recall asks for is said by ``config``.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.zeros(config.lookup_rows, config.n_embd))

    def rows(self, tokens: Tensor) -> Tensor:
        """The rows that each of ``(B, T)`` tokens reads: ``(B, T, n)`` int64."""
        config, found = self.config, []
        if config.ngrams:
            found.append(ngram_rows(tokens, config.ngrams, config.ngram_rows))
        if config.recall:
            followed, length = recall(tokens, config.recall)
            first = len(config.ngrams) * config.ngram_rows  # of those without a match
            row = first + 1 + length * (config.vocab_size + 1) + followed
            found.append(torch.where(length < 0, first, row)[..., None])
        return torch.cat(found, dim=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """The embedding of each of ``(B, T)`` tokens' past, itself included: ``(B, T, C)``."""
        return self.of_rows(self.rows(tokens).flatten(0, 1)).unflatten(0, tokens.shape)

    def of_rows(self, rows: Tensor) -> Tensor:
        """The embedding of each of some tokens that read ``rows``, ``(tokens, n)``."""
        return _SumOfRows.apply(self.table, rows)
