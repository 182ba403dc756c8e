"""Engines and decoders with one fault each, for an audit to find."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparse_tx.masks import dense_mask
from sparse_tx.model.positions import rotate
from sparse_tx.patterns import Pattern


def engine_with_pairs(change: Callable[[Pattern, int, Tensor], None]) -> Callable:
    """An engine that is right but for what ``change`` does to the mask of a pattern and head."""

    def attend(q, k, v, heads, scale):
        mask = _masks(heads, q.shape[2], change)
        return _weights(q, k, mask, mask, scale) @ v

    return attend


def engine_that_counts(change: Callable[[Pattern, int, Tensor], None]) -> Callable:
    """An engine in whose sum under the fraction pairs count that are not read."""

    def attend(q, k, v, heads, scale):
        masks = [_masks(heads, q.shape[2], what) for what in (change, lambda *_: None)]
        return _weights(q, k, *masks, scale) @ v

    return attend


def _masks(heads, T: int, change) -> Tensor:
    masks = [dense_mask(pattern, T) for pattern in heads]
    for head, (pattern, mask) in enumerate(zip(heads, masks, strict=True)):
        change(pattern, head, mask)
    return torch.stack(masks)


def _weights(q: Tensor, k: Tensor, counted: Tensor, read: Tensor, scale: float) -> Tensor:
    scores = (q @ k.transpose(-1, -2)) * scale
    scores = scores.masked_fill(~counted, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).masked_fill(~read, 0)


class SmallDecoder:
    """Keeps all keys and values, and computes one position at a time, prompts too.

    For models without look-ups, earlier embeddings and dropout. ``change`` is given the position
    that computes, and the keys so far, ``(N, n, H, D)``, and the mask of the heads, ``(H, n)``, to
    change in place.
    """

    def __init__(self, model, room, change=lambda position, keys, mask: None):
        self.model, self.room, self.change = model, room, change

    def prefill(self, texts):
        self.cache = [([], []) for _ in self.model.blocks]
        self.position = 0
        logits = self._step(torch.full((len(texts),), self.model.start_token))
        for at in range(texts.shape[1]):
            logits = self._step(texts[:, at])
        return logits

    def decode_one_token(self, tokens):
        return self._step(tokens)

    @torch.inference_mode()
    def _step(self, tokens):
        model, config = self.model, self.model.config
        x = model.token_embedding(tokens[:, None])
        if model.positions is not None:
            x = x + model.positions(self.position + 1)[self.position]
        for block, cache in zip(model.blocks, self.cache, strict=True):
            attention = block.attention
            qkv = attention.to_qkv(block.attention_norm(x))
            q, k, v = attention.split_heads(qkv, self.position, config.seq_len)
            for kept, new in zip(cache, (k, v), strict=True):
                kept.append(new[:, 0])
            keys, values = (torch.stack(kept, 1) for kept in cache)  # (N, n, H, D)
            place = torch.arange(self.position + 1)
            heads = attention.layer.heads(config.n_head)
            mask = torch.stack([pattern.allows(self.position, place) for pattern in heads])
            self.change(self.position, keys, mask)
            scores = torch.einsum("bhd,bkhd->bhk", q[:, 0], keys) * q.shape[-1] ** -0.5
            weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            out = torch.einsum("bhk,bkhd->bhd", weights, values)
            x = block.after_heads(x, out.flatten(1)[:, None])
        self.position += 1
        return model.final_norm(x[:, 0]) @ model.head_weight.T


def forget_the_oldest(position: int, keys: Tensor, mask: Tensor) -> None:
    """A ring that is too small by one, once it is full."""
    for head in mask:
        if head.sum() == 5:
            head[head.nonzero()[0]] = False


def read_one_more(position: int, keys: Tensor, mask: Tensor) -> None:
    """A window off by one."""
    for head in mask:
        first = head.nonzero()[0].item()
        head[max(0, first - 1)] = True


def rotate_again(position: int, keys: Tensor, mask: Tensor) -> None:
    """Of the key at position 3, when others read it."""
    if position > 3:
        keys[:, 3:4] = rotate(keys[:, 3:4], 3, 31)


class Meddling(SmallDecoder):
    """Right up to rounding, and yet what comes out depends on what it must not."""

    def __init__(self, model, room, which):
        super().__init__(model, room)
        self.which = which

    def prefill(self, texts):
        self.first = texts[0, 0].item() if texts.shape[1] else 0
        return super().prefill(texts)

    def _step(self, tokens):
        logits = super()._step(tokens).clone()
        logits[self.which] *= 1 + 5e-7 * (self.first % 2)
        return logits
