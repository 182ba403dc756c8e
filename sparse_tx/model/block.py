"""One residual block: sparse attention, then a feed-forward, each on a normalised input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparse_tx.attention import sparse_attention
from sparse_tx.config import ModelConfig
from sparse_tx.model.positions import rotate
from sparse_tx.patterns import Layer


def make_norm(config: ModelConfig) -> nn.Module:
    """The normalisation that ``config`` asks for, over the model width."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=1e-6)
    return nn.LayerNorm(config.n_embd, bias=config.bias)


def gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the paper's approximation of GELU (section 5.4)."""
    return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head attention along one layer's patterns; activations stay in ``(B, T, H, D)`` memory."""

    def __init__(self, config: ModelConfig, layer: Layer, engine: str):
        super().__init__()
        self.config, self.layer, self.engine = config, layer, engine
        self.to_qkv = nn.Linear(
            config.n_embd, 2 * config.qk_width + config.n_embd, bias=config.bias
        )
        self.to_out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        widths = (self.config.qk_width, self.config.qk_width, C)
        q, k, v = (
            part.view(B, T, self.config.n_head, -1)  # (B, T, H, D)
            for part in self.to_qkv(x).split(widths, dim=-1)
        )
        if self.config.qk_norm:
            q, k = (F.rms_norm(part, part.shape[-1:]) for part in (q, k))
        if self.config.position == "rope":
            q, k = rotate(q), rotate(k)
        out = sparse_attention(
            *(part.transpose(1, 2) for part in (q, k, v)),  # views, (B, H, T, D)
            self.layer,
            engine=self.engine,
        )
        return self.to_out(out.transpose(1, 2).reshape(B, T, C))


class FeedForward(nn.Module):
    """Two matrices with an activation between them; swiglu gates it by a third."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.activation, self.chunk = config.activation, config.chunk
        gates = 2 if config.activation == "swiglu" else 1
        self.expand = nn.Linear(config.n_embd, gates * config.ff_width, bias=config.bias)
        self.to_out = nn.Linear(config.ff_width, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``(B, T, C)``; beyond ``chunk`` tokens piece by piece, kept by recomputation."""
        if x.shape[0] * x.shape[1] <= self.chunk:
            return self._apply_to(x)
        pieces = x.split(max(1, self.chunk // x.shape[0]), dim=1)
        if torch.is_grad_enabled():
            done = [checkpoint(self._apply_to, piece, use_reentrant=False) for piece in pieces]
        else:
            done = [self._apply_to(piece) for piece in pieces]
        return torch.cat(done, dim=1)

    def _apply_to(self, x: Tensor) -> Tensor:
        hidden = self.expand(x)
        if self.activation == "swiglu":
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * hidden
        elif self.activation == "relu2":
            hidden = F.relu(hidden).square()
        else:
            hidden = gelu(hidden)
        return self.to_out(hidden)


class Block(nn.Module):
    """a = dropout(attention(norm(x))); b = dropout(feed-forward(norm(x + a))); the result x + a + b."""

    def __init__(self, config: ModelConfig, layer: Layer, engine: str):
        super().__init__()
        self.attention_norm, self.attention = make_norm(config), Attention(config, layer, engine)
        self.feed_forward_norm, self.feed_forward = make_norm(config), FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
