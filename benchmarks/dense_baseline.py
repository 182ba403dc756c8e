"""What a user would train instead: a small dense GPT in plain torch, and x-transformers' example.

Neither uses anything of sparse_tx. Both are trained on windows drawn at random, as their kind is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, log, pi

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """A GPT-2-like decoder and its recipe, as nanoGPT's small character model has them.

    Attributes:
        seq_len: tokens of a window.
        batch_size: windows of a step.
        n_layer, n_head, n_embd: the model's shape.
        lr: peak learning rate of AdamW; it falls to a tenth by a cosine.
    """

    seq_len: int = 256
    batch_size: int = 16
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    lr: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    final_lr_share: float = 0.1


class DenseBlock(nn.Module):
    """Attention by torch's fused kernel and a feed-forward of GELU, each after a layer norm."""

    def __init__(self, C: int, H: int):
        super().__init__()
        self.H = H
        self.attention_norm = nn.LayerNorm(C, bias=False)
        self.to_qkv, self.to_out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.feed_forward_norm = nn.LayerNorm(C, bias=False)
        self.expand, self.contract = (
            nn.Linear(C, 4 * C, bias=False),
            nn.Linear(4 * C, C, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        qkv = self.to_qkv(self.attention_norm(x)).view(B, T, 3, self.H, C // self.H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.to_out(heads.transpose(1, 2).reshape(B, T, C))
        return x + self.contract(F.gelu(self.expand(self.feed_forward_norm(x))))


class DenseGPT(nn.Module):
    """Token and position tables, blocks, and a head that shares the token table."""

    def __init__(self, settings: DenseSettings, vocab_size: int = 256):
        super().__init__()
        C, L = settings.n_embd, settings.n_layer
        self.tokens = nn.Embedding(vocab_size, C)
        self.positions = nn.Embedding(settings.seq_len, C)
        self.blocks = nn.ModuleList(DenseBlock(C, settings.n_head) for _ in range(L))
        self.final_norm = nn.LayerNorm(C, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                is_branch_output = name.endswith(("to_out.weight", "contract.weight"))
                nn.init.normal_(parameter, std=0.02 / ((2 * L) ** 0.5 if is_branch_output else 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``(B, T, V)`` for tokens ``(B, T)``."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.final_norm(x), self.tokens.weight)


@dataclass(frozen=True)
class Trained:
    """A baseline after its training.

    Attributes:
        logits: from ``(B, T)`` tokens to ``(B, T, V)``, in evaluation mode.
        context: the longest T.
        steps, tokens: how far it came.
        n_parameters: all of them.
        settings: as JSON holds them.
    """

    logits: Callable[[Tensor], Tensor]
    context: int
    steps: int
    tokens: int
    n_parameters: int
    settings: dict


def _draw(tokens: np.ndarray, n: int, length: int, generator: np.random.Generator) -> Tensor:
    """``n`` windows of ``length`` tokens from random places: ``(n, length)`` int64."""
    starts = generator.integers(len(tokens) - length, size=n)
    windows = np.stack([tokens[start : start + length] for start in starts])
    return torch.from_numpy(windows.astype(np.int64))


def _rate(settings, step: int, progress: float) -> float:
    """The learning rate: linear warm-up by steps, then a cosine over the time."""
    warmup = min(1.0, (step + 1) / settings.warmup_steps)
    fall = 0.5 * (1 + cos(pi * progress))
    return settings.lr * warmup * (settings.final_lr_share + (1 - settings.final_lr_share) * fall)


def train_dense(settings: DenseSettings, tokens: np.ndarray, seconds: float, seed: int) -> Trained:
    """Train a ``DenseGPT`` for so long, its making included; the schedule follows the clock."""
    begin = time.monotonic()
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model = DenseGPT(settings)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=settings.betas,
        fused=True,
    )
    step = 0
    while (progress := (time.monotonic() - begin) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = _rate(settings, step, progress)
        windows = _draw(tokens, settings.batch_size, settings.seq_len + 1, generator)
        logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
    return Trained(
        logits=model.eval(),
        context=settings.seq_len,
        steps=step,
        tokens=step * settings.batch_size * settings.seq_len,
        n_parameters=sum(p.numel() for p in model.parameters()),
        settings=vars(settings) | {"betas": list(settings.betas)},
    )


@dataclass(frozen=True, kw_only=True)
class XTransformersSettings:
    """The package's enwik8 example, scaled to minutes on a CPU.

    Its own: dim 512, depth 6, heads 8, windows of 1,024, 4 x 4 of them a step, Adam at a constant
    1e-4. Here the model is smaller, and the rate rises and falls as that of ``DenseSettings``.
    """

    seq_len: int = 1024
    batch_size: int = 4
    accumulation: int = 1
    dim: int = 128
    depth: int = 4
    heads: int = 2
    lr: float = 3e-3
    warmup_steps: int = 100
    clip: float = 0.5
    final_lr_share: float = 0.1


def train_x_transformers(
    settings: XTransformersSettings, tokens: np.ndarray, seconds: float, seed: int
) -> Trained:
    """Train the package's decoder for so long, its making included."""
    from x_transformers import Decoder, TransformerWrapper
    from x_transformers.autoregressive_wrapper import AutoregressiveWrapper

    begin = time.monotonic()
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    decoder = Decoder(
        dim=settings.dim,
        depth=settings.depth,
        heads=settings.heads,
        rotary_pos_emb=True,
        attn_orthog_projected_values=True,
        attn_orthog_projected_values_per_head=True,
        attn_flash=True,
    )
    net = TransformerWrapper(num_tokens=256, max_seq_len=settings.seq_len, attn_layers=decoder)
    model = AutoregressiveWrapper(net)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    step = 0
    while (progress := (time.monotonic() - begin) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = _rate(settings, step, progress)
        for _ in range(settings.accumulation):
            windows = _draw(tokens, settings.batch_size, settings.seq_len + 1, generator)
            (model(windows) / settings.accumulation).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
    per_step = settings.batch_size * settings.accumulation * settings.seq_len
    return Trained(
        logits=net.eval(),
        context=settings.seq_len,
        steps=step,
        tokens=step * per_step,
        n_parameters=sum(p.numel() for p in model.parameters()),
        settings=vars(settings),
    )


@torch.no_grad()
def bits_per_byte(
    logits: Callable[[Tensor], Tensor], context: int, text: np.ndarray, batch_tokens: int = 8192
) -> float:
    """Score all of ``text`` but its first byte, each byte once.

    Windows of ``context`` tokens move by half of it, and of each but the first only the second
    half is scored: but for the first half window, a byte has at least half a context before it.
    """
    half = context // 2
    text = text[: 1 + len(text[1:]) // half * half].astype(np.int64)
    starts = range(0, len(text) - context, half)
    per_batch = max(1, batch_tokens // context)
    nats, scored = 0.0, 0
    for first in range(0, len(starts), per_batch):
        some = starts[first : first + per_batch]
        windows = torch.from_numpy(np.stack([text[s : s + context + 1] for s in some]))
        losses = F.cross_entropy(
            logits(windows[:, :-1]).transpose(1, 2), windows[:, 1:], reduction="none"
        )  # (n, context)
        nats += losses[:, half:].sum(dtype=torch.float64).item()
        scored += losses[:, half:].numel()
        if first == 0:
            nats += losses[0, :half].sum(dtype=torch.float64).item()
            scored += half
    return nats / log(2) / scored
