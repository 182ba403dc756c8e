"""Residual blocks over a text so long that few tensors of its length may exist at one time.

Of a block stays its input alone, in bfloat16 if so configured. Everything that goes token by token
- norms, projections, dropout, feed-forward - takes ``chunk`` tokens of the batch at a time, and
attention, which mixes tokens, ``head_chunk`` heads. The backward pass through a block has two
stages, and holds two tensors of the text's length throughout:

1. The heads' outputs are computed once more. From them, chunk by chunk, comes the rest of the
   block: its gradients take the places of what they are gradients of, that of the block's result
   becoming that of its input by the residual path, the heads' outputs becoming their gradients.
2. Group by group, heads are computed a third time, from queries, keys and values of their own, and
   their gradients carried on, chunk by chunk, through projection and norm, and added to that of the
   block's input.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_tx.attention import sparse_attention
from sparse_tx.model.block import Block
from sparse_tx.patterns import Layer

Keep = Callable[[range, Tensor, Tensor], None]
"""Takes the numbers of some heads, and their keys and values, ``(B, T, heads, D)`` each."""


def through_long_blocks(x: Tensor, blocks: Sequence[Block]) -> Tensor:
    """What ``blocks``, one after another, make of ``(B, T, C)``, by their config's ``head_chunk``.

    Differentiable once, in ``x`` and in all weights. To save memory, ``x`` is overwritten unless it
    is stored for the backward pass as it is, and so is the gradient of the result: nobody else may
    hold them.
    """
    weights = [p for block in blocks for p in block.parameters() if p.requires_grad]
    trains = torch.is_grad_enabled() and (x.requires_grad or bool(weights))
    return _LongBlocks.apply(x, tuple(blocks), trains, *weights)


def through_one_long_block(x: Tensor, block: Block, heads_at_once: int, keep: Keep) -> Tensor:
    """What a block makes of ``(B, T, C)``, without gradients, in the place of ``x``.

    Args:
        x: the block's input, overwritten.
        block: the block.
        heads_at_once: heads whose queries, keys and values exist at one time.
        keep: is given keys and values of each group of heads.
    """
    H = block.attention.config.n_head
    groups = [range(n, min(n + heads_at_once, H)) for n in range(0, H, heads_at_once)]
    heads = _outputs_of_heads(block, x, groups, keep)
    for here in _chunks(x, block.attention.config.chunk):
        piece = _piece(block, x, here)
        x[:, here] = block.after_heads(piece, heads[:, here].flatten(2))
    return x


class _LongBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, blocks, trains, *weights):
        config, kind = blocks[0].attention.config, x.device.type
        keeps_x = trains and config.stored_precision == "fp32"
        if not keeps_x:
            ctx.mark_dirty(x)
        ctx.autocast = dict(
            device_type=kind,
            dtype=torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            # Weights that are converted without gradients must not be met again where they count.
            cache_enabled=False,
        )
        stored, ctx.random_states = [], []
        with torch.autocast(**ctx.autocast):
            for block in blocks:
                if trains:
                    stored.append(x if keeps_x else x.to(torch.bfloat16))
                    ctx.random_states.append(_random_state(block, x.device))
                heads = _outputs_of_heads(block, x, config.head_groups)
                result = torch.empty_like(x) if keeps_x else x
                for here in _chunks(x, config.chunk):
                    piece = _piece(block, x, here)
                    result[:, here] = block.after_heads(piece, heads[:, here].flatten(2))
                del heads  # not to be there beside the next block's
                x = result
        ctx.blocks, ctx.weights = blocks, weights
        ctx.save_for_backward(*stored)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        # A sum's would be one number everywhere, where nobody may write.
        gradient = gradient.contiguous()
        sums = _Sums()
        with torch.autocast(**ctx.autocast):
            each = zip(ctx.blocks, ctx.saved_tensors, ctx.random_states, strict=True)
            for block, x, random_state in reversed(list(each)):
                with _as_random_as(random_state, gradient.device):
                    d_heads = _back_to_heads(block, x, gradient, sums)
                for heads in block.attention.config.head_groups:
                    _back_to_input(block, heads, x, d_heads, gradient, sums)
                del d_heads
        return gradient, None, None, *map(sums.of, ctx.weights)


class _Sums:
    """Gradients of weights, summed over chunks."""

    def __init__(self):
        self._found: dict[Tensor, Tensor] = {}

    def of(self, weight: Tensor) -> Tensor | None:
        return self._found.get(weight)

    def add(self, weights: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            if weight in self._found:
                self._found[weight] += gradient
            else:
                self._found[weight] = gradient


def _outputs_of_heads(
    block: Block, x: Tensor, groups: Iterable[range], keep: Keep | None = None
) -> Tensor:
    """The outputs of all heads for the block's input, ``(B, T, H, D)``, a group at a time."""
    found = None
    for heads in groups:
        qkv = _queries_keys_values(block, heads, x)
        if keep is not None:
            keep(heads, *qkv[1:])
        out = _attend(block, heads, qkv).transpose(1, 2)
        del qkv
        if found is None:
            B, T, _, D = out.shape
            found = out.new_empty(B, T, block.attention.config.n_head, D)
        found[:, :, heads.start : heads.stop] = out
        del out  # not to be there beside the next group's
    return found


def _queries_keys_values(block: Block, heads: range, x: Tensor) -> list[Tensor]:
    """Of some heads, for the block's input: ``(B, T, H, D)`` each."""
    projection, found = block.attention.projection_of(heads), []
    for here in _chunks(x, block.attention.config.chunk):
        parts = _project(block, projection, _piece(block, x, here), here.start, x.shape[1])
        if not found:
            found = [part.new_empty(*x.shape[:2], *part.shape[2:]) for part in parts]
        for whole, part in zip(found, parts, strict=True):
            whole[:, here] = part
        del parts, part  # views of a projection not to be there beside the next chunk's
    return found


def _project(
    block: Block, projection: tuple[Tensor, Tensor | None], x: Tensor, start: int, T: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a chunk ``(B, n, C)`` which begins at ``start``, of T tokens."""
    return block.attention.split_heads(F.linear(block.attention_norm(x), *projection), start, T)


def _attend(block: Block, heads: range, qkv: Sequence[Tensor]) -> Tensor:
    """The outputs of some heads, ``(B, H, T, D)``, for their queries, keys and values."""
    config = block.attention.config
    patterns = block.attention.layer.heads(config.n_head)[heads.start : heads.stop]
    q, k, v = (part.transpose(1, 2) for part in qkv)
    return sparse_attention(q, k, v, Layer(patterns), engine=config.engine)


def _back_to_heads(block: Block, x: Tensor, gradient: Tensor, sums: _Sums) -> Tensor:
    """The first stage; returns the gradient of the heads' outputs, ``(B, T, H, D)``."""
    heads = _outputs_of_heads(block, x, block.attention.config.head_groups)
    after = (block.attention.to_out, block.feed_forward_norm, block.feed_forward)
    weights = _trained(p for module in after for p in module.parameters())
    for here in _chunks(x, block.attention.config.chunk):
        _chunk_back_to_heads(block, weights, here, x, heads, gradient, sums)
    return heads


def _chunk_back_to_heads(
    block: Block,
    weights: list[Tensor],
    here: slice,
    x: Tensor,
    heads: Tensor,
    gradient: Tensor,
    sums: _Sums,
) -> None:
    """Put gradients in the places of the heads' outputs, and of the gradient of the result."""
    with torch.enable_grad():
        inputs = [_leaf(_piece(block, x, here)), _leaf(heads[:, here])]
        result = block.after_heads(inputs[0], inputs[1].flatten(2))
    d_x, d_heads, *of_weights = torch.autograd.grad(result, [*inputs, *weights], gradient[:, here])
    gradient[:, here], heads[:, here] = d_x, d_heads
    sums.add(weights, of_weights)


def _back_to_input(
    block: Block, heads: range, x: Tensor, d_heads: Tensor, gradient: Tensor, sums: _Sums
) -> None:
    """The second stage for some heads; adds to ``gradient``."""
    d_qkv = _back_through_attention(block, heads, x, d_heads)
    attention = block.attention
    with torch.enable_grad():
        projection = attention.projection_of(heads)
    of_norm = _trained(block.attention_norm.parameters())
    of_projection = _trained(projection)
    weights, of_group = [*of_norm, *of_projection], _Sums()
    for here in _chunks(x, attention.config.chunk):
        d_parts = [part[:, here] for part in d_qkv]
        _chunk_back_to_input(block, projection, weights, here, x, d_parts, gradient, of_group)
    sums.add(of_norm, map(of_group.of, of_norm))
    if whole := _trained(attention.to_qkv.parameters()):
        d_projection = [of_group.of(some) for some in of_projection]
        sums.add(whole, torch.autograd.grad(of_projection, whole, d_projection))


def _back_through_attention(
    block: Block, heads: range, x: Tensor, d_heads: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of some heads' queries, keys and values, ``(B, T, H, D)`` each."""
    qkv = [_leaf(part) for part in _queries_keys_values(block, heads, x)]
    with torch.enable_grad():
        out = _attend(block, heads, qkv)
    return torch.autograd.grad(out, qkv, d_heads[:, :, heads.start : heads.stop].transpose(1, 2))


def _chunk_back_to_input(
    block: Block,
    projection: tuple[Tensor, Tensor | None],
    weights: list[Tensor],
    here: slice,
    x: Tensor,
    d_parts: list[Tensor],
    gradient: Tensor,
    sums: _Sums,
) -> None:
    with torch.enable_grad():
        piece = _leaf(_piece(block, x, here))
        # A view, because torch's FLOP counter takes no leaves as inputs of modules.
        parts = _project(block, projection, piece.view_as(piece), here.start, x.shape[1])
    d_x, *of_weights = torch.autograd.grad(parts, [piece, *weights], d_parts)
    gradient[:, here] += d_x
    sums.add(weights, of_weights)


def _piece(block: Block, x: Tensor, here: slice) -> Tensor:
    """A chunk of the block's input, in the type that it is computed in."""
    return x[:, here].detach().to(block.attention.to_qkv.weight.dtype)


def _trained(weights: Iterable[Tensor | None]) -> list[Tensor]:
    return [weight for weight in weights if weight is not None and weight.requires_grad]


def _chunks(x: Tensor, size: int) -> Iterator[slice]:
    """Slices of T that hold some ``size`` tokens of the batch ``(B, T, C)`` each."""
    B, T = x.shape[:2]
    n = max(1, size // B)
    for start in range(0, T, n):
        yield slice(start, min(T, start + n))


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _random_state(block: Block, device: torch.device) -> Tensor | None:
    """Where the random numbers of the block's dropout begin; None if it draws none."""
    if not (block.training and block.dropout.p):
        return None
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextlib.contextmanager
def _as_random_as(state: Tensor | None, device: torch.device) -> Iterator[None]:
    """Let random numbers begin at ``state`` once more, and go on afterwards as if nothing was."""
    if state is None:
        yield
        return
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.cuda.set_rng_state(state, device) if on_gpu else torch.set_rng_state(state)
        yield
