"""The decoder by steps: the beginning of a text in one pass, then one token at a time.

Both keep keys and values in a ``KVCache``. Logits are those of the whole text at once, as far as
sums in another order round alike.
"""

import torch
from torch import Tensor

from sparse_tx.cache import KVCache
from sparse_tx.model.gpt import GPT
from sparse_tx.model.long_blocks import through_one_long_block


def make_cache(model: GPT, *, texts: int, room: int) -> KVCache:
    """An empty cache for ``texts`` texts of up to ``room`` tokens, start symbols included.

    Its type is that of the model's products: of its weights, or what autocast makes of them.
    """
    config, weight = model.config, model.token_embedding.weight
    kind = weight.device.type
    autocast = torch.is_autocast_enabled(kind)
    return KVCache(
        config.stack,
        n_layer=config.n_layer,
        n_head=config.n_head,
        texts=texts,
        room=room,
        D=config.qk_width // config.n_head,
        D_v=config.n_embd // config.n_head,
        dtype=torch.get_autocast_dtype(kind) if autocast else weight.dtype,
        device=weight.device,
    )


@torch.inference_mode()
def prefill(model: GPT, tokens: Tensor, cache: KVCache, text: int) -> Tensor:
    """Read the beginning of a text in one pass, its heads a few at a time where it is long.

    Args:
        model: in eval mode.
        tokens: ``(T,)`` int64, the start symbol first, on the model's device.
        cache: where the text's keys and values go.
        text: its number there.

    Returns:
        ``(V,)`` logits of the token after it.
    """
    x = model.embed(tokens.unsqueeze(0))  # (1, T, C)
    for block, layer in zip(model.blocks, cache.layers, strict=True):
        x = through_one_long_block(
            x,
            block,
            model.config.heads_in_prefill(len(tokens)),
            lambda heads, k, v, layer=layer: layer.fill(text, heads, k[0], v[0]),
        )
    return model.final_norm(x[0, -1]) @ model.head_weight.T


@torch.inference_mode()
def decode_one_token(
    model: GPT, recent: Tensor, rows: Tensor, cache: KVCache, texts: slice, position: int
) -> Tensor:
    """Append one token to some texts of one length.

    Args:
        model: in eval mode.
        recent: the tokens, and those before them (``GPT.embed_one_token``).
        rows: of the look-ups (``GPT.embed_one_token``).
        cache: of all texts.
        texts: n of them.
        position: of the tokens, counted from the start symbol's, 0.

    Returns:
        ``(n, V)`` logits of the token after each.
    """
    x = model.embed_one_token(recent, rows, position)  # (n, 1, C)
    for block, layer in zip(model.blocks, cache.layers, strict=True):
        x = block.decode_one_token(x, layer, texts, position)
    return model.final_norm(x[:, 0]) @ model.head_weight.T
