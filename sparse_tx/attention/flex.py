"""The ``flex`` engine: torch's FlexAttention with block masks made from tiles.

A pattern that is strided alone is seen as columns, each with ordinary causal attention, because in
place every causal tile of it is live. Everything else runs in place, under the block mask of
``sparse_tx.masks``; no T x T predicate is ever evaluated. FlexAttention (Dong et al. 2024,
arXiv:2412.05496) is compiled at the first call for each set of shapes; lengths are rounded up, to
whole tiles and by less than a quarter, so that a growing text is compiled a few times and not at
every token. On a CPU it has no backward.
"""

import warnings
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from sparse_tx.errors import UserError
from sparse_tx.masks import block_mask
from sparse_tx.patterns import Dense, Layer, Local, Pattern, Strided

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Up to this length the scores are smaller than what a compiler takes, and a CPU does without it, as
# it does for what torch compiles no FlexAttention for there: float64 on a CPU.
_EAGER = 512
_COMPILATIONS = 256
_TILE = 128
# A CUDA grid has at most this many programs in the dimensions that batch and heads take.
_MOST_PROGRAMS = 65_535


@torch.compiler.disable
def attend(q: Tensor, k: Tensor, v: Tensor, heads: tuple[Pattern, ...], scale: float) -> Tensor:
    """Attend with one pattern per head; ``q, k, v`` and the result are ``(B, H, T, D)``.

    A query that may read no key at all gets zeros. Inputs are copied where T, or for strided heads
    the stride times the rows of their columns, is not a length that is compiled for.

    Raises:
        UserError: gradients are asked for on a CPU.
    """
    wants_grad = [name for name, x in (("q", q), ("k", k), ("v", v)) if x.requires_grad]
    if q.device.type == "cpu" and wants_grad and torch.is_grad_enabled():
        raise UserError(
            f"gradients are asked for {' and '.join(wants_grad)}, which engine='flex' cannot"
            " compute on a CPU, because FlexAttention has no backward there; use engine='views', or"
            " run it under torch.no_grad()"
        )
    if q.device.type == "cpu":  # under no_grad too, torch refuses what requires gradients
        q, k, v = q.detach(), k.detach(), v.detach()
    T = q.shape[2]
    # A stride as long as the text reads the query's own position.
    heads = tuple(Local(1) if (_stride_of(pattern) or 0) >= T else pattern for pattern in heads)
    groups: dict[int | None, list[int]] = {}
    for head, pattern in enumerate(heads):
        groups.setdefault(_stride_of(pattern), []).append(head)
    parts = []
    for stride, chosen in groups.items():
        own = [x if len(groups) == 1 else x[:, chosen] for x in (q, k, v)]
        if stride is None:
            parts.append(_in_place(*own, tuple(heads[head] for head in chosen), scale))
        else:
            parts.append(_in_columns(*own, stride, scale))
    if len(parts) == 1:
        return parts[0]
    order = [head for chosen in groups.values() for head in chosen]
    back = torch.tensor(order, device=q.device).argsort()
    return torch.cat(parts, 1).index_select(1, back)


def _stride_of(pattern: Pattern) -> int | None:
    """Of a pattern that is one strided set."""
    (first, *others) = pattern.parts
    return first.stride if isinstance(first, Strided) and not others else None


def why_not(
    device: torch.device, dtype: torch.dtype, D: int, D_v: int, heads: tuple[Pattern, ...]
) -> str | None:
    """Say in a sentence why this engine cannot run on such inputs, or None if it can."""
    if device.type not in ("cuda", "cpu"):
        return f"FlexAttention is used on CUDA and CPU, and the tensors are on '{device.type}'"
    if device.type == "cuda" and dtype not in _DTYPES:
        return f"FlexAttention takes bfloat16, float16 and float32 on CUDA, not {dtype}"
    if device.type == "cuda" and min(D, D_v) < 16:
        return f"FlexAttention needs head dimensions of at least 16 on CUDA, not {min(D, D_v)}"
    return None


def _in_place(q, k, v, heads: tuple[Pattern, ...], scale: float) -> Tensor:
    T = q.shape[2]
    length = _compiled_length(T, q.device, q.dtype, least=_TILE)
    if length > T:  # no query reads what comes after it
        q, k, v = (F.pad(x, (0, 0, 0, length - T)) for x in (q, k, v))
    return _flex(q, k, v, _mask(heads, length, q.device), scale, split=0)[:, :, :T]


def _in_columns(q, k, v, stride: int, scale: float) -> Tensor:
    """Attend causally down the columns of the matrix whose rows are ``stride`` tokens wide."""
    B, H, T, _ = q.shape
    rows = _compiled_length(-(-T // stride), q.device, q.dtype, least=1)
    short = rows * stride - T
    if short:  # no query reads what comes after it
        q, k, v = (F.pad(x, (0, 0, 0, short)) for x in (q, k, v))
    # Columns join with batch and heads in the order in which they lie in memory: that is a view.
    by_head = q.stride(1) > q.stride(2)
    q, k, v = (x.unflatten(2, (-1, stride)) for x in (q, k, v))  # (B, H, rows, s, D)
    if by_head:
        columns = [x.transpose(2, 3).flatten(0, 1) for x in (q, k, v)]  # (B * H, s, rows, D)
    else:
        columns = [x.permute(0, 3, 1, 2, 4).flatten(1, 2) for x in (q, k, v)]  # (B, s * H, rows, D)
    out = _flex(*columns, _mask((Dense(),), rows, q.device), scale, split=1)
    if by_head:
        out = out.unflatten(0, (B, H)).transpose(2, 3)
    else:
        out = out.unflatten(1, (stride, H)).permute(0, 2, 3, 1, 4)
    return out.flatten(2, 3)[:, :, :T]


@lru_cache(maxsize=32)
def _mask(heads: tuple[Pattern, ...], T: int, device: torch.device) -> BlockMask:
    # Kept from a call under inference mode, its tensors would be refused where gradients are made.
    with torch.inference_mode(False):
        return block_mask(Layer(heads), T, n_head=len(heads), tile_size=_TILE, device=device)


def _is_eager(T: int, device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cpu" and (T <= _EAGER or dtype not in _DTYPES)


def _compiled_length(T: int, device: torch.device, dtype: torch.dtype, *, least: int) -> int:
    """The next of four lengths per power of two, at least ``least`` apart; T itself if eager."""
    step = max(least, 1 << max(0, (T - 1).bit_length() - 3))
    return T if _is_eager(T, device, dtype) else -(-T // step) * step


def _flex(q, k, v, mask: BlockMask, scale: float, *, split: int) -> Tensor:
    """Run FlexAttention, by pieces of dimension ``split`` where a grid cannot hold all of it."""
    piece = max(1, _MOST_PROGRAMS // q.shape[1 - split])
    if q.shape[split] <= piece:
        return _flex_once(q, k, v, mask, scale)
    pieces = zip(*(x.split(piece, split) for x in (q, k, v)), strict=True)
    return torch.cat([_flex_once(*part, mask, scale) for part in pieces], split)


def _flex_once(q, k, v, mask: BlockMask, scale: float) -> Tensor:
    if _is_eager(q.shape[2], q.device, q.dtype):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
            return flex_attention(q, k, v, block_mask=mask, scale=scale)
    # Each pattern and shape is a compilation of its own. Past the limit, fullgraph raises, where
    # torch would otherwise materialise the scores.
    with torch._dynamo.config.patch(recompile_limit=_COMPILATIONS):
        return _compiled()(q, k, v, block_mask=mask, scale=scale)


@lru_cache(maxsize=1)
def _compiled():
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)
