"""One residual block: sparse attention, then a feed-forward, each on a normalised input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparse_tx.attention import sparse_attention
from sparse_tx.cache import LayerCache
from sparse_tx.config import ModelConfig
from sparse_tx.model.feed_forward import gains_by_cache, squared_relu_feed_forward
from sparse_tx.model.positions import rotate
from sparse_tx.patterns import Layer


def make_norm(config: ModelConfig) -> nn.Module:
    """The normalisation that ``config`` asks for, over the model width."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=1e-6)
    return nn.LayerNorm(config.n_embd, bias=config.bias)


def gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the paper's approximation of GELU (section 5.4)."""
    return F.silu(1.702 * x) / 1.702  # silu(y) is y sigmoid(y), in one pass


class _SquaredReLU(torch.autograd.Function):
    """relu(x)^2, keeping one tensor for the backward pass instead of two."""

    @staticmethod
    def forward(ctx, x):
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):
        (positive,) = ctx.saved_tensors
        return (d_out * positive).mul_(2)


class Attention(nn.Module):
    """Multi-head attention along one layer's patterns; memory is laid out ``(B, T, H, D)``."""

    def __init__(self, config: ModelConfig, layer: Layer):
        super().__init__()
        self.config, self.layer = config, layer
        self.to_qkv = nn.Linear(
            config.n_embd, 2 * config.qk_width + config.n_embd, bias=config.bias
        )
        self.to_out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split_heads(self.to_qkv(x))
        out = sparse_attention(
            *(part.transpose(1, 2) for part in (q, k, v)),  # views, (B, H, T, D)
            self.layer,
            engine=self.config.engine,
        )
        return self.to_out(out.transpose(1, 2).reshape(x.shape))

    def decode_one_token(self, x: Tensor, cache: LayerCache, texts: slice, position: int) -> Tensor:
        """The same for one more token, ``(n, 1, C)``, of ``texts`` that are in the cache."""
        q, k, v = self.split_heads(self.to_qkv(x), position, self.config.seq_len)
        out = cache.attend(texts, position, q[:, 0], k[:, 0], v[:, 0])  # (n, H, D)
        return self.to_out(out.flatten(1).unsqueeze(1))

    def split_heads(
        self, qkv: Tensor, start: int = 0, T: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``(B, n, H, D)`` each, normalised and rotated as configured.

        Args:
            qkv: what the projection gave for all heads or some: ``(B, n, 2 H D + H D_v)``.
            start: the position of the first of the n tokens.
            T: tokens of the whole text; n when not given.
        """
        B, n, width = qkv.shape
        D, D_v = (w // self.config.n_head for w in (self.config.qk_width, self.config.n_embd))
        H = width // (2 * D + D_v)
        qk, v = qkv.split((2 * H * D, H * D_v), dim=-1)
        qk, v = qk.view(B, n, 2 * H, D), v.view(B, n, H, D_v)
        if self.config.qk_norm:
            qk = F.layer_norm(qk, qk.shape[-1:])
        if self.config.rotates:
            qk = rotate(qk, start, T)
        # Under autocast, norms and rotations may come back in a wider type than the projection.
        q, k = qk.to(v.dtype).chunk(2, dim=2)
        return q, k, v

    def projection_of(self, heads: range) -> tuple[Tensor, Tensor | None]:
        """Weight and bias by which ``to_qkv`` makes queries, keys and values of some heads."""
        H = self.config.n_head
        rows, first = [], 0
        for width in (self.config.qk_width, self.config.qk_width, self.config.n_embd):
            rows.append(slice(first + heads.start * width // H, first + heads.stop * width // H))
            first += width
        weight, bias = self.to_qkv.weight, self.to_qkv.bias
        return (
            torch.cat([weight[those] for those in rows]),
            None if bias is None else torch.cat([bias[those] for those in rows]),
        )


class FeedForward(nn.Module):
    """Two matrices with an activation between them; swiglu gates it by a third."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.activation, self.chunk = config.activation, config.chunk
        self.in_cache = config.feed_forward_in_cache
        gates = 2 if config.activation == "swiglu" else 1
        self.expand = nn.Linear(config.n_embd, gates * config.ff_width, bias=config.bias)
        self.to_out = nn.Linear(config.ff_width, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``(B, T, C)``; beyond ``chunk`` tokens piece by piece, kept by recomputation."""
        if x.shape[0] * x.shape[1] <= self.chunk:
            return self.apply_to(x)
        pieces = x.split(max(1, self.chunk // x.shape[0]), dim=1)
        if torch.is_grad_enabled():
            done = [checkpoint(self.apply_to, piece, use_reentrant=False) for piece in pieces]
        else:
            done = [self.apply_to(piece) for piece in pieces]
        return torch.cat(done, dim=1)

    def apply_to(self, x: Tensor) -> Tensor:
        """Apply to all of ``x`` at once, as ``forward`` does to each piece."""
        if self.in_cache and gains_by_cache(x):
            return squared_relu_feed_forward(x, self.expand.weight, self.to_out.weight)
        hidden = self.expand(x)
        if self.activation == "swiglu":
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * hidden
        elif self.activation == "relu2":
            hidden = _SquaredReLU.apply(hidden)
        else:
            hidden = gelu(hidden)
        return self.to_out(hidden)


class Block(nn.Module):
    """x + a + b, with a = dropout(attention(norm(x))), b = dropout(feed_forward(norm(x + a)))."""

    def __init__(self, config: ModelConfig, layer: Layer):
        super().__init__()
        self.attention_norm, self.attention = make_norm(config), Attention(config, layer)
        self.feed_forward_norm, self.feed_forward = make_norm(config), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self._add_feed_forward(x + self.dropout(self.attention(self.attention_norm(x))))

    def decode_one_token(self, x: Tensor, cache: LayerCache, texts: slice, position: int) -> Tensor:
        """The same for one more token, ``(n, 1, C)``, of ``texts`` that are in the cache."""
        normed = self.attention_norm(x)
        return self._add_feed_forward(
            x + self.attention.decode_one_token(normed, cache, texts, position)
        )

    def after_heads(self, x: Tensor, heads: Tensor) -> Tensor:
        """The block's result for its input and the outputs of its heads, ``(B, T, C)`` each."""
        return self._add_feed_forward(x + self.dropout(self.attention.to_out(heads)))

    def _add_feed_forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
