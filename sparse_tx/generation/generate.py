"""The generation loop."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparse_tx.config import SamplingConfig
from sparse_tx.errors import UserError
from sparse_tx.generation.decoders import make_decoder
from sparse_tx.generation.samplers import draw, next_token_probabilities


def generate(
    model: nn.Module,
    prompt: Tensor | Sequence[int],
    *,
    length: int,
    settings: SamplingConfig | None = None,
    seed: int = 0,
    num_samples: int = 1,
) -> Iterator[Tensor]:
    """Continue a prompt, token by token, in several independent ways at once.

    Sample n has its own random numbers, those of ``seed + n``: it is the same however many samples
    are made with it, as far as the model's rounding does not depend on the size of its batch. The
    model is put in eval mode for each step and left as it was between them.

    Args:
        model: a ``GPT``, on any device.
        prompt: ``(P,)`` token ids; may be empty. The start symbol is put before it here. A text
            that outgrows ``model.config.seq_len`` loses its oldest half (see ``context``).
        length: tokens to generate.
        settings: how a token is drawn; from the model's own distribution if not given.
        seed: of the first sample.
        num_samples: N.

    Yields:
        ``(N,)`` int64 on the CPU, ``length`` times: the next token of each sample.

    Raises:
        UserError: a number is out of range (at the call), or the model's logits are not finite (at
            the step).
    """
    for name, value in (("length", length), ("num_samples", num_samples)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more")
    if not 0 <= seed < 2**63:  # what torch takes is twice as much; seed + n stays within
        raise UserError(f"seed is {seed}; it must be from 0 to 2^63 - 1")
    settings = settings or SamplingConfig()
    prompt = torch.as_tensor(prompt, dtype=torch.long).cpu()  # (P,)
    vocab_size = model.config.vocab_size
    unknown = prompt[(prompt < 0) | (prompt >= vocab_size)]
    if len(unknown):
        raise UserError(
            f"token {unknown[0].item()} of the prompt: the model's tokens are 0 to {vocab_size - 1}"
        )
    generators = [torch.Generator().manual_seed(seed + n) for n in range(num_samples)]
    return _steps(model, prompt.expand(num_samples, -1), length, settings, generators)


def _steps(
    model: nn.Module,
    prompts: Tensor,
    length: int,
    settings: SamplingConfig,
    generators: list[torch.Generator],
) -> Iterator[Tensor]:
    decoder = make_decoder(model, prompts.shape[1] + length)
    tokens = None
    for _ in range(length):
        with _eval_mode(model):
            logits = (
                decoder.prefill(prompts) if tokens is None else decoder.decode_one_token(tokens)
            )
        tokens = draw(next_token_probabilities(logits, settings), generators)
        yield tokens


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """The caller has the model between two tokens, so the mode is set and restored at each."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
