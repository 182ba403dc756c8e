"""Who takes part: attention of one pattern by one implementation, ours and those of others."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from math import ceil, inf

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from sparse_tx import sparse_attention
from sparse_tx.attention.api import ENGINES
from sparse_tx.errors import UserError, nearest
from sparse_tx.masks import block_mask, dense_mask
from sparse_tx.patterns import Dense, Layer, Local, Pattern, parse_pattern

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """The attention of one layer: H heads of D channels, T tokens, batch 1, on a device."""

    H: int
    T: int
    D: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v and the gradient of out: ``(1, H, T, D)`` views of ``(1, T, H, D)`` memory."""
        torch.manual_seed(0)
        shape = (1, self.T, self.H, self.D)
        q, k, v, d_out = (
            torch.randn(shape, device=self.device).to(self.dtype).transpose(1, 2) for _ in range(4)
        )
        return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), d_out

    def flops(self, pairs: int, *, backward: bool) -> int:
        """Floating-point operations on ``pairs`` attended pairs, summed over heads.

        Forward has 2 matrix products and backward 5, as it computes the scores again (Dao et al.
        2022, algorithms 1 and 4); each is D multiplications and D additions a pair.
        """
        return (7 if backward else 2) * 2 * self.D * pairs

    def compulsory_bytes(self, *, backward: bool) -> int:
        """Bytes that no implementation avoids: each input read once, each result written once.

        Forward reads q, k, v and writes out; backward reads these four and the gradient of out,
        and writes three gradients.
        """
        return (12 if backward else 4) * self.H * self.T * self.D * self.dtype.itemsize


@dataclass(frozen=True)
class Contender:
    """Attention of one layer's ``pattern``, in notation, by ``engine``."""

    pattern: str
    engine: str

    def __str__(self) -> str:
        return f"{self.pattern} by {self.engine}"

    @cached_property
    def layer(self) -> Layer:
        stack = parse_pattern(self.pattern)
        if len(stack.layers) > 1:
            raise UserError(
                f"'{self.pattern}' describes {len(stack.layers)} layers, and one is timed at a"
                " time; separate patterns by ';'"
            )
        return stack.layers[0]

    @property
    def is_baseline(self) -> bool:
        return self.engine in BASELINES

    def compiles(self) -> bool:
        """Whether the first call for a shape compiles, so that its time says nothing."""
        return self.engine in ("flex", "flex-naive", "triton")

    def has_backward(self, device: str) -> bool:
        """FlexAttention computes no gradients on a CPU."""
        return device != "cpu" or self.engine not in ("flex", "flex-naive")

    def count_pairs(self, H: int, T: int) -> int:
        """Attended (query, key) pairs, summed over heads."""
        return sum(pattern.count_pairs(T) for pattern in self.layer.heads(H))

    def quadratic_bytes(self, H: int, T: int) -> int:
        """Roughly what it materialises that grows as T x T; see ``_QUADRATIC_BYTES``."""
        masks = H if self.engine == "reference" else len(set(self.layer.heads(H)))
        return _QUADRATIC_BYTES.get(self.engine, 0) * (H if masks > 1 else 1) * T * T

    def prepare(self, problem: Problem) -> Attend:
        """Do once what a model would do once, such as a mask; returns what each pass calls.

        Raises:
            UserError: this contender cannot run the problem; the message says why.
        """
        prepare = PEERS.get(self.engine)
        if prepare:
            return prepare(self.layer, problem)
        return lambda q, k, v: sparse_attention(q, k, v, self.layer, engine=self.engine)


def line_up(patterns: list[str], engines: list[str], device: str) -> list[Contender]:
    """The dense baselines of the device, then every pattern by every engine that may know it.

    Raises:
        UserError: there is no such engine or pattern.
    """
    known = [*ENGINES, *(name for name in PEERS if name not in BASELINES)]
    for engine in engines:
        if engine not in known:
            raise UserError(
                f"unknown engine '{engine}': {nearest(engine, known)}the engines are"
                f" {', '.join(known)}"
            )
    contenders = [Contender("dense", engine) for engine in BASELINES_OF[device]]
    contenders += [Contender(pattern, engine) for pattern in patterns for engine in engines]
    for contender in contenders:
        contender.layer  # noqa: B018 - a pattern that cannot be read fails here
    return contenders


def _sdpa(backend: SDPBackend | None) -> Callable[[Layer, Problem], Attend]:
    """torch's fused dense causal attention, by one backend or by torch's own choice."""

    def attend(q, k, v):
        with sdpa_kernel(backend) if backend else nullcontext():
            try:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)
            except RuntimeError as error:
                if "No available kernel" not in str(error):
                    raise
                name = backend.name.lower()
                raise UserError(f"torch's {name} does not take {q.dtype} here") from error

    return lambda layer, problem: attend


def _sdpa_masked(layer: Layer, problem: Problem) -> Attend:
    """torch's fused attention under a dense boolean mask: exact, and no faster than dense."""
    heads = layer.heads(problem.H)
    if len(set(heads)) == 1:
        mask = dense_mask(heads[0], problem.T, problem.device)
    else:
        mask = dense_mask(layer, problem.T, problem.device, n_head=problem.H)
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _flex_naive(layer: Layer, problem: Problem) -> Attend:
    """FlexAttention as its manual has it: the pattern's predicate, in place, compiled."""
    shared = len(set(layer.heads(problem.H))) == 1
    mask = create_block_mask(
        block_mask(layer, 1, n_head=problem.H, device=problem.device).mask_mod,
        None,
        None if shared else problem.H,
        problem.T,
        problem.T,
        device=problem.device,
    )

    def attend(q, k, v):
        if problem.device == "cpu":  # where what requires gradients is refused
            q, k, v = (x.detach() for x in (q, k, v))
        # Each pattern and shape is one more compilation; beyond 8, torch would refuse.
        with torch._dynamo.config.patch(recompile_limit=256):
            return _compiled_flex()(q, k, v, block_mask=mask)

    return attend


@cache
def _compiled_flex():
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def _local_attention(layer: Layer, problem: Problem) -> Attend:
    """The package local-attention, made exact.

    It cuts the sequence into buckets, and a query reads its own bucket and ``look_backward``
    earlier ones. Its ``exact_windowsize`` makes that ``window_size * look_backward`` earlier keys
    besides the query's own, so a window of W would need buckets of W - 1. Half as large buckets, of
    which a query sees three, and a bias that takes away what is W or more back, are twice as fast.
    """
    if find_spec("local_attention") is None:
        raise UserError("the package local-attention is not installed (pip install '.[bench]')")
    from local_attention import LocalAttention

    heads = set(layer.heads(problem.H))
    (head,) = heads if len(heads) == 1 else (None,)
    if not isinstance(head, Local):
        raise UserError("the package local-attention knows only windows")
    bucket = ceil(head.window / 2)
    attention = LocalAttention(
        window_size=bucket,
        causal=True,
        look_backward=2,
        exact_windowsize=False,
        autopad=True,
        use_rotary_pos_emb=False,
    )
    query = torch.arange(2 * bucket, 3 * bucket, device=problem.device)[:, None]
    key = torch.arange(3 * bucket, device=problem.device)
    bias = torch.zeros(1, bucket, 3 * bucket, device=problem.device, dtype=problem.dtype)
    bias.masked_fill_(~head.allows(query, key), -inf)
    return lambda q, k, v: attention(q, k, v, attn_bias=bias)


PEERS: dict[str, Callable[[Layer, Problem], Attend]] = {
    "sdpa": _sdpa(None),
    "sdpa-flash": _sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa-cudnn": _sdpa(SDPBackend.CUDNN_ATTENTION),
    "sdpa-mask": _sdpa_masked,
    "flex-naive": _flex_naive,
    "local-attention": _local_attention,
}
BASELINES_OF = {"cpu": ("sdpa",), "cuda": ("sdpa", "sdpa-flash", "sdpa-cudnn")}
BASELINES = BASELINES_OF["cuda"]
DEFAULT_ENGINES = {
    "cpu": "cpu,views,flex,flex-naive,sdpa-mask,local-attention",
    "cuda": "triton,flex,views,flex-naive,sdpa-mask,local-attention",
}
# Measured on a CPU, per entry of each head's mask: the mask as bool and as float; the temporaries
# of a predicate on int64 positions; scores, weights and their gradients.
_QUADRATIC_BYTES = {"sdpa-mask": 5, "flex-naive": 12, "reference": 24}


def dense_pairs(H: int, T: int) -> int:
    """Pairs of dense causal attention, summed over heads."""
    dense: Pattern = Dense()
    return H * dense.count_pairs(T)
