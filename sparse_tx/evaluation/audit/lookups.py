"""Look-ups: which rows of their table each position reads.

They are discrete, and have no gradient; and rows that training never met are zero, so that what is
read there cannot be seen in an embedding. So the rows themselves are compared, before and after
every flip of a token, whatever is in them.
"""

import torch
from torch import Tensor

from sparse_tx.evaluation.audit.findings import Fault
from sparse_tx.evaluation.audit.texts import flip
from sparse_tx.model import GPT

# Row numbers that are compared at one time.
_AT_ONCE = 1 << 22
# Positions that are asked whether they recall what they should.
_RECALLS = 64


def find_lookup_fault(model: GPT, tokens: Tensor) -> Fault | None:
    """Flip every token, and find the first row that changes and may not, or should and does not.

    An n-gram may depend on its own tokens only. What is recalled may depend on no later token, and
    has to be what followed when the same tokens stood before for the last time.

    Args:
        model: with look-ups.
        tokens: ``(T,)``.
    """
    T, config, device = len(tokens), model.config, tokens.device
    place = torch.arange(T, device=device)
    lengths = [*config.ngrams, *([T] if config.recall else [])]
    for positions in place.split(max(1, _AT_ONCE // (T * len(lengths)))):
        before = model.lookups.rows(tokens.repeat(len(positions), 1))  # (n, T, look-ups)
        changed = before != model.lookups.rows(flip(model, tokens, positions))
        distance = (place - positions[:, None])[..., None]  # (n, T, 1)
        far = distance >= torch.tensor(lengths, device=device)
        wrong = changed & ((distance < 0) | far)
        if wrong.any():
            n, query, column = wrong.nonzero()[0].tolist()
            what = f"the n-gram of {lengths[column]} tokens"
            if column == len(config.ngrams):
                what = "what is recalled"
            return _fault("leak", T, query, positions[n].item(), f"{what} changes")
    return _find_recall_gap(model, tokens) if config.recall else None


def _find_recall_gap(model: GPT, tokens: Tensor) -> Fault | None:
    text, least = tokens.tolist(), model.config.recall
    found = [(at, key) for at, key in enumerate(followers(text, least)) if key is not None]
    # With a flip among the tokens that have to agree, others would be recalled.
    found = [(at, key) for at, key in found if key <= at - least]
    found = found[:: 1 + len(found) // _RECALLS]
    if not found:
        return None
    flipped = flip(model, tokens, torch.tensor([key for _, key in found], device=tokens.device))
    changed = model.lookups.rows(flipped) != model.lookups.rows(tokens[None])
    for (at, key), now, rows in zip(found, flipped.tolist(), changed[..., -1], strict=True):
        # A flip may also make a later place agree, after which the same token stands.
        is_other = now[followers(now, least)[at]] != text[key]
        if is_other and not rows[at]:
            return _fault("gap", len(text), at, key, "what is recalled does not change")
    return None


def followers(text: list[int], least: int) -> list[int | None]:
    """For each position, where the token is that followed its last ``least`` tokens before.

    Of several earlier places, the latest counts; None where there is none.
    """
    latest: dict[tuple[int, ...], int] = {}
    found: list[int | None] = [None] * len(text)
    for at in range(least - 1, len(text)):
        last = tuple(text[at + 1 - least : at + 1])
        if last in latest:
            found[at] = latest[last] + 1
        latest[last] = at
    return found


def _fault(kind, seq_len: int, query: int, key: int, what: str) -> Fault:
    what = f"at position {query}, {what} with the token at position {key}"
    return Fault(kind=kind, path="look-ups", seq_len=seq_len, query=query, key=key, what=what)
