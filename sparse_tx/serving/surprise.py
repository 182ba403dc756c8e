"""What a model thought of a text that is there already, token by token, and what it could read.

A token is scored in the context in which generation would have drawn it: of a text longer than the
model's context, what ``generation.context`` keeps. So a text takes one pass while it fits, and
beyond that windows that overlap by half; each token is scored once.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import log

import numpy as np
import torch

from sparse_tx.config import ModelConfig
from sparse_tx.data import Tokenizer
from sparse_tx.errors import UserError
from sparse_tx.generation import most_probable
from sparse_tx.generation.context import first_kept
from sparse_tx.generation.samplers import NOT_FINITE
from sparse_tx.model import GPT

# Of them the logits exist at one time.
_LOGITS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Window:
    """Tokens ``first`` to ``stop - 1`` of a text, scored where the context begins at ``begin``."""

    begin: int
    first: int
    stop: int


@dataclass(frozen=True)
class Scores:
    """Natural log-probabilities of successive tokens under the model's own distribution."""

    logprobs: list[float]
    """Of each token."""
    top: list[tuple[tuple[int, float], ...]]
    """The most probable tokens in the place of each with theirs, the most probable first."""


def windows(length: int, seq_len: int) -> Iterator[Window]:
    """Yield the windows in which a text of ``length`` tokens is scored, in order."""
    first = 0
    while first < length:
        begin = first_kept(first, seq_len)
        stop = min(length, begin + seq_len)  # one input, the start symbol, stands before the text
        yield Window(begin, first, stop)
        first = stop


@torch.inference_mode()
def score_window(model: GPT, tokens: Sequence[int], window: Window, top: int) -> Scores:
    """Score the tokens of a window, in one pass.

    Args:
        model: in eval mode.
        tokens: the whole text.
        window: of it.
        top: how many of the most probable tokens to give for each place.

    Raises:
        UserError: the model's logits are not finite.
    """
    device = model.head_weight.device
    inputs = [model.start_token, *tokens[window.begin : window.stop - 1]]
    hidden = model.hidden(torch.tensor([inputs], device=device))[0]  # (stop - begin, C)
    hidden = hidden[window.first - window.begin :]
    targets = torch.tensor(tokens[window.first : window.stop], device=device)
    rows = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    logprobs, found = [], []
    for some, some_targets in zip(hidden.split(rows), targets.split(rows), strict=True):
        logits = some @ model.head_weight.T
        if not logits.isfinite().all():
            raise UserError(NOT_FINITE)
        all_logprobs = logits.double().log_softmax(-1)  # (n, V)
        logprobs += all_logprobs.gather(1, some_targets[:, None])[:, 0].tolist()
        found += most_probable(all_logprobs, top)
    return Scores(logprobs, found)


def surprise_json(tokens: Sequence[int], scores: Scores, tokenizer: Tokenizer) -> bytes:
    """A scored text as JSON, in bits: what the page shows.

    ``tokens`` are its ids, ``surprise`` the bits of each, ``top`` the ids of the most probable
    tokens in the place of each, ``top_surprise`` their bits, and ``bytes`` what the ids that occur
    stand for, in hexadecimal.
    """
    top = [[id for id, _ in each] for each in scores.top]
    bits = [-logprob / log(2) for logprob in scores.logprobs]
    n_bytes = int(tokenizer.token_bytes[np.asarray(tokens)].sum())
    told = {
        "n_bytes": n_bytes,
        "n_tokens": len(tokens),
        "bits": sum(bits),
        "bits_per_byte": sum(bits) / n_bytes,
        "tokens": list(tokens),
        "surprise": [round(each, 4) for each in bits],
        "top": top,
        "top_surprise": [[round(-value / log(2), 4) for _, value in each] for each in scores.top],
        "bytes": {id: tokenizer.decode([id]).hex() for id in {*tokens, *chain(*top)}},
    }
    return json.dumps(told, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Reads:
    """What one head could read when it took part in the prediction of a token of a text."""

    start_symbol: bool
    """Whether the start symbol that stands before the context."""
    tokens: list[range]
    """The tokens before the predicted one, as ascending ranges, of which two may overlap."""


def tokens_read(config: ModelConfig, *, layer: int, head: int, token: int) -> Reads:
    """Say what a head of a layer could read directly when token number ``token`` was predicted.

    The prediction is made where the token before it stands. What lower layers brought to the places
    that are read, and what look-ups bring, is not in it.

    Args:
        config: of the model.
        layer: counted from 0 at the input.
        head: of the layer, counted from 0.
        token: counted from 0; the text is scored as ``windows`` says.

    Raises:
        UserError: there is no such layer, head or token.
    """
    for name, value, stop in (("layer", layer, config.n_layer), ("head", head, config.n_head)):
        if not 0 <= value < stop:
            raise UserError(f"{name} is {value}; the model has {stop}, counted from 0")
    if token < 0:
        raise UserError(f"token is {token}; tokens are counted from 0")
    begin = first_kept(token, config.seq_len)
    # Position 0 of the context is the start symbol's, position p that of token begin + p - 1.
    read = config.stack.at(layer, head, config.n_head).read_set(token - begin)
    found = []
    for positions in read.ranges():
        if 0 in positions:
            positions = positions[1:]
        if positions:
            start, stop = (end + begin - 1 for end in (positions.start, positions.stop))
            found.append(range(start, stop, positions.step))
    return Reads(0 in read, sorted(found, key=lambda these: these.start))
