"""Attention alone: which keys each head's queries read, all pairs of positions, by one engine.

Three views of the same question, on drawn inputs whose scores stay within a few units, so that no
allowed weight is too small for its type:

* *weights*: with values that are 1 in one place and 0 elsewhere, outputs are the weights
  themselves, one key to each column of the head. They are 0 exactly where the pattern does not
  allow a pair, and elsewhere those of the definition in float64, up to rounding: a forbidden key
  that counts only in the sum under the fraction shows there;
* *gradients*: of each query's output with respect to each key and value. Queries with one number
  that is not 0, each another one than its neighbours, keep the gradients of as many queries apart
  in one pass. They are 0 exactly where a pair is forbidden: what is summed there are products with
  a weight of 0;
* *flips*: a key and its value change, and the outputs that may not read it keep every bit. Both
  outputs are computed in the same shapes and in the same place of the batch, because only then are
  sums in the same order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sparse_tx.attention import sparse_attention
from sparse_tx.evaluation.audit.findings import Fault
from sparse_tx.evaluation.audit.lengths import spread
from sparse_tx.masks import dense_mask
from sparse_tx.model import GPT
from sparse_tx.patterns import Layer, Pattern

# Numbers of a tensor that are computed at one time.
_AT_ONCE = 1 << 24
# Up to this many pairs, over all flips, every position is flipped: all 512 of 512.
_FLIPPED_PAIRS = 1 << 27
# How far from the definition a weight may be, in roundings of its type. Scores are sums, and what a
# score is off by, its weight is off by too.
_ROUNDINGS = 64
# Products of float32 on a GPU may run in TensorFloat-32.
_TENSOR_FLOAT_32 = 2**-10

_Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Heads:
    """A layer's heads: what the configuration says they are, and what the model computes by.

    Attributes:
        numbers: the layers that are like this.
        patterns: of each head, by the configuration.
        layer: what the model's layers give to attention.
    """

    numbers: tuple[int, ...]
    patterns: tuple[Pattern, ...]
    layer: Layer

    def allowed(self, T: int, device: torch.device) -> Tensor:
        """The pairs that may be read: ``(H, T, T)`` bool, queries as rows."""
        masks = {pattern: dense_mask(pattern, T, device) for pattern in set(self.patterns)}
        return torch.stack([masks[pattern] for pattern in self.patterns])


def heads_of(model: GPT) -> list[Heads]:
    """The distinct layers of a model."""
    H, found = model.config.n_head, {}
    for number, block in enumerate(model.blocks):
        patterns = model.config.stack.layer(number).heads(H)
        found.setdefault((patterns, block.attention.layer), []).append(number)
    return [Heads(tuple(numbers), *key) for key, numbers in found.items()]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layer's heads by one engine, in one type, at one length.

    Attributes:
        D: head dimension of queries and keys.
        D_v: head dimension of values.
        gradients: whether the engine has a backward pass.
    """

    heads: Heads
    engine: str
    T: int
    D: int
    D_v: int
    dtype: torch.dtype
    device: torch.device
    gradients: bool

    def find_fault(self) -> Fault | None:
        """The first pair of positions that is not as it should be, or None."""
        allowed = self.heads.allowed(self.T, self.device)
        attend = partial(sparse_attention, pattern=self.heads.layer, engine=self.engine)
        return (
            self._fault(
                "leak", allowed.triu(1), "{pattern} allows query {query} the later key {key}"
            )
            or self._in_weights(attend, allowed)
            or (self._in_gradients(attend, allowed) if self.gradients else None)
            or self._in_flips(attend, allowed)
        )

    def flipped(self) -> list[int]:
        """The positions whose keys are changed: all, unless there are too many pairs for that."""
        return spread(self.T, max(2, _FLIPPED_PAIRS // self.T**2), ())

    def _in_weights(self, attend: _Attend, allowed: Tensor) -> Fault | None:
        q, k, _ = self._inputs()
        with torch.no_grad():
            found = self._weights(attend, q, k)
        expected = self._weights_by_definition(q, k, allowed)
        eps = torch.finfo(self.dtype).eps
        if self.device.type != "cpu":
            eps = max(eps, _TENSOR_FLOAT_32)
        near = (found.double() - expected).abs() <= _ROUNDINGS * eps * expected  # NaN never is
        return (
            self._fault(
                "leak",
                found.ne(0) & ~allowed,
                "query {query} reads key {key}, which {pattern} does not allow: its weight is"
                " {found:.4g}",
                found,
            )
            or self._fault(
                "gap",
                found.eq(0) & allowed,
                "query {query} does not read key {key}, which {pattern} allows: its weight is 0",
            )
            or self._fault(
                "wrong",
                ~near & allowed,
                "query {query} gives key {key} the weight {found:.4g}, and not {expected:.4g},"
                " which it has among the keys that {pattern} allows",
                found,
                expected,
            )
        )

    def _in_gradients(self, attend: _Attend, allowed: Tensor) -> Fault | None:
        of_keys, of_values = self._gradients(attend)
        # A query with a single key weighs it by 1, whatever the key is. In half precision, what the
        # gradient is made of, a difference of values, may round to 0.
        moves = allowed & (allowed.sum(-1, keepdim=True) > 1)
        if self.dtype not in (torch.float32, torch.float64):
            moves = torch.zeros_like(moves)
        for what, found, seen in (("value", of_values, allowed), ("key", of_keys, moves)):
            fault = self._fault(
                "leak",
                found.ne(0) & ~allowed,
                f"query {{query}} has a gradient with respect to the {what} of key {{key}}, which"
                " {pattern} does not allow: it is {found:.4g}",
                found,
            ) or self._fault(
                "gap",
                found.eq(0) & seen,
                f"query {{query}} has no gradient with respect to the {what} of key {{key}}, which"
                " {pattern} allows",
            )
            if fault is not None:
                return fault
        return None

    def _in_flips(self, attend: _Attend, allowed: Tensor) -> Fault | None:
        q, k, v = self._draw_all()
        H, T = len(self.heads.patterns), self.T
        n = max(1, _AT_ONCE // (H * T * max(T, 2 * (self.D + self.D_v))))
        wrong = torch.zeros_like(allowed)
        for keys in torch.tensor(self.flipped(), device=self.device).split(n):
            batch = torch.arange(len(keys), device=self.device)
            before = [_copies(x, len(keys)) for x in (q, k, v)]
            after = [before[0], before[1].clone(), before[2].clone()]
            for x in after[1:]:
                x[batch, :, keys] += 1
            with torch.no_grad():
                changed = (attend(*before) != attend(*after)).any(-1)  # (n, H, T)
            wrong[:, :, keys] = changed.permute(1, 2, 0) & ~allowed[:, :, keys]
        return self._fault(
            "leak",
            wrong,
            "the output of query {query} changes with key {key}, which {pattern} does not allow",
        )

    def _weights(self, attend: _Attend, q: Tensor, k: Tensor) -> Tensor:
        """All weights ``(H, T, T)``: each key in turn has a column of the values to itself."""
        D_v, found = self.D_v, []
        for keys, n in self._batches(D_v):
            at = torch.arange(len(keys), device=self.device)
            v = q.new_zeros(n, self.T, len(self.heads.patterns), D_v)
            v[at // D_v, at + keys.start, :, at % D_v] = 1
            out = attend(_copies(q, n), _copies(k, n), v.transpose(1, 2))  # (n, H, T, D_v)
            found.append(out.permute(1, 2, 0, 3).flatten(2)[:, :, : len(keys)])
        return torch.cat(found, -1)

    def _weights_by_definition(self, q: Tensor, k: Tensor, allowed: Tensor) -> Tensor:
        """The softmax over the allowed keys, ``(H, T, T)`` float64; 0 for queries without any."""
        scores = torch.einsum("ihd,jhd->hij", q.double(), k.double()) * self.D**-0.5
        weights = scores.exp() * allowed  # the scores are small enough for that
        return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.double).tiny)

    def _gradients(self, attend: _Attend) -> tuple[Tensor, Tensor]:
        """Of each query's output with respect to each key, and each value: ``(H, T, T)`` each."""
        q, k, v = self._inputs()
        m = min(self.D, self.D_v)
        of_keys, of_values = [], []
        for queries, n in self._batches(m):
            at = torch.arange(len(queries), device=self.device)
            d_out = v.new_zeros(n, *v.shape)
            d_out[at // m, at + queries.start, :, at % m] = 1
            leaves = [_copies(x, n).requires_grad_() for x in (k, v)]
            out = attend(_copies(q, n), *leaves)
            gradients = torch.autograd.grad(out, leaves, d_out.transpose(1, 2))  # (n, H, T, D)
            # In entry c, column d has the gradients of query c m + d alone.
            for kept, d_x in zip((of_keys, of_values), gradients, strict=True):
                by_query = d_x[..., :m].permute(1, 0, 3, 2).flatten(1, 2)  # (H, n m, T)
                kept.append(by_query[:, : len(queries)])
        return torch.cat(of_keys, 1), torch.cat(of_values, 1)

    def _batches(self, each: int) -> Iterator[tuple[range, int]]:
        """Positions in turn, ``each`` of them to a batch entry, and the number of entries."""
        H, D = len(self.heads.patterns), 4 * (self.D + self.D_v)
        entries = max(1, _AT_ONCE // (H * self.T * max(self.T, D)))
        for first in range(0, self.T, entries * each):
            here = range(first, min(self.T, first + entries * each))
            yield here, -(-len(here) // each)

    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, ``(T, H, D)`` each; of a query, all numbers but one are 0.

        Scores are between -1.5 and 1.5, so that no weight is below exp(-3) / T.
        """
        q, k, v = self._draw_all()
        # Away from 0: from -1 to 1 becomes -1.5 to -1 and 1 to 1.5.
        q, v = (torch.where(x < 0, x / 2 - 1, x / 2 + 1) for x in (q, v))
        place = torch.arange(self.T, device=self.device) % min(self.D, self.D_v)
        chosen = place[:, None, None] == torch.arange(self.D, device=self.device)  # (T, 1, D)
        return torch.where(chosen, q * self.D**0.5, 0), k, v

    def _draw_all(self) -> list[Tensor]:
        """q, k and v, ``(T, H, D)`` each, of numbers from -1 to 1."""
        generator, H = torch.Generator().manual_seed(0), len(self.heads.patterns)
        return [
            torch.empty(self.T, H, width, dtype=torch.float64)
            .uniform_(-1, 1, generator=generator)
            .to(self.device, self.dtype)
            for width in (self.D, self.D, self.D_v)
        ]

    def _fault(
        self,
        kind: Literal["leak", "gap", "wrong"],
        wrong: Tensor,
        sentence: str,
        found: Tensor | None = None,
        expected: Tensor | None = None,
    ) -> Fault | None:
        """The first fault that is marked in ``(H, T, T)``, or None."""
        if not wrong.any():
            return None
        head, query, key = wrong.nonzero()[0].tolist()
        what = sentence.format(
            query=query,
            key=key,
            pattern=f"'{self.heads.patterns[head]}'",
            found=0 if found is None else found[head, query, key].item(),
            expected=0 if expected is None else expected[head, query, key].item(),
        )
        return Fault(
            kind=kind,
            path=f"engine '{self.engine}'{type_suffix(self.dtype)}",
            seq_len=self.T,
            query=query,
            key=key,
            layers=self.heads.numbers,
            head=head,
            what=what,
        )


def type_suffix(dtype: torch.dtype) -> str:
    """What follows an engine's name where it computes in another type than float32."""
    return "" if dtype == torch.float32 else f" ({name_of(dtype)})"


def name_of(dtype: torch.dtype) -> str:
    """A type by its own name, as ``float32``."""
    return str(dtype).removeprefix("torch.")


def _copies(x: Tensor, n: int) -> Tensor:
    """``(n, H, T, D)`` of ``(T, H, D)``, in the memory order that a model has."""
    return x.expand(n, *x.shape).contiguous().transpose(1, 2)
