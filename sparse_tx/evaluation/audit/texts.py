"""The texts that a model is audited on, and one in which a token is another."""

import torch
from torch import Tensor

from sparse_tx.model import GPT


def draw_text(model: GPT, T: int, seed: int = 0) -> Tensor:
    """Draw ``(T,)`` tokens, the start symbol first, on the model's device.

    The second half repeats the first, so that there is something to recall.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.config.vocab_size, (T,), generator=generator)
    half = T // 2 + 1
    tokens[half:] = tokens[1 : 1 + T - half].clone()
    tokens[0] = model.start_token
    return tokens.to(model.token_embedding.weight.device)


def flip(model: GPT, tokens: Tensor, positions: Tensor) -> Tensor:
    """``(n, T)`` copies of ``(T,)`` tokens: in each, the one at its own of n positions is another.

    Which one depends on the position. The start symbol is a token too, the last of all.
    """
    symbols = model.config.vocab_size + 1
    flipped = tokens.repeat(len(positions), 1)
    step = 1 + positions % (symbols - 1)  # a whole round would lead back
    batch = torch.arange(len(positions), device=tokens.device)
    flipped[batch, positions] = (tokens[positions] + step) % symbols
    return flipped
