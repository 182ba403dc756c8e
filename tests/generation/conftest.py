"""Models of a few lines that stand in for GPT: causal, exact in any batch."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn


class StandIn(nn.Module):
    """Logits depend on every input and on where it stands; ``inputs`` records what it was given."""

    def __init__(self, vocab_size=11, seq_len=7):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size, seq_len=seq_len)
        generator = torch.Generator().manual_seed(5)
        table = torch.randn(vocab_size + 1, vocab_size, generator=generator, dtype=torch.float64)
        self.table = nn.Parameter(table)
        self.start_token = vocab_size
        self.head_weight = torch.eye(vocab_size, dtype=torch.float64)
        self.inputs = []
        self.modes = []

    def hidden(self, tokens):
        assert tokens.shape[1] <= self.config.seq_len
        self.inputs.append(tokens.tolist())
        self.modes.append(self.training)
        places = torch.arange(1, tokens.shape[1] + 1, dtype=torch.float64)
        return (self.table[tokens] * places.sin()[:, None]).cumsum(1)

    def forward(self, tokens):
        return self.hidden(tokens) @ self.head_weight.T


class Scripted(StandIn):
    """Goes on after n tokens with ``script[n]``, by far the most probable token there."""

    def __init__(self, script, vocab_size):
        super().__init__(vocab_size, seq_len=len(script))
        self.script = torch.tensor(script)

    def hidden(self, tokens):
        self.inputs.append(tokens.tolist())
        rows = torch.eye(self.config.vocab_size, dtype=torch.float64) * 9
        return rows[self.script[: tokens.shape[1]]].expand(len(tokens), -1, -1)


@pytest.fixture
def model():
    return StandIn()


@pytest.fixture
def scripted():
    return Scripted
