"""The non-local block for sequences, maps and clips (arXiv:1711.07971)."""

from math import isfinite
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_tx.accounting.maps import SIMILARITIES, SUBSAMPLES, check_pattern_of_non_local
from sparse_tx.errors import UserError
from sparse_tx.patterns import Stack
from sparse_tx.patterns.given import PatternLike, require_width
from sparse_tx.vision.checks import (
    require_choice,
    require_count,
    require_maps,
    require_variance,
)
from sparse_tx.vision.softmax_attention import (
    attend,
    maps_of,
    positions_of,
    steps_of,
    widened,
    without_autocast,
)

# Standard deviation of the convolutions' first weights in the released code.
FIRST_WEIGHTS = 0.01
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class NonLocal(nn.Module):
    """``x + norm(W_z y)``, ``y_i = 1/C(x) sum_j f(x_i, x_j) g(x_j)``; exactly ``x`` at the start.

    The similarities f (section 3.2), with theta, phi and g 1x1 convolutions with biases:

    * "gaussian": exp(x_i . x_j), and C(x) their sum: a softmax;
    * "embedded": exp(theta_i . phi_j), and a softmax again;
    * "dot": theta_i . phi_j, with C(x) the number M of positions that are read. It is computed as
      theta_i (sum_j phi_j g_j / M), without a map of all pairs;
    * "concat": relu(w . [theta_i, phi_j]), with the same C(x). It is computed as relu(a_i + b_j)
      for the two halves of w, so that pairs have one number each.

    Every position reads all, or along a pattern some; softmaxes are float32 at least. Weights start
    small as in the released code, and the last factor at zero: the norm's gain, or W_z itself.

    Args:
        channels: C of the input.
        inner: width of theta, phi and g; half of ``channels`` when not given.
        dims: axes of a position: 1 for ``(B, C, L)``, 2 for maps, 3 for clips ``(B, C, T, H, W)``.
        similarity: see above.
        scale: factor of the exponents; ``1 / sqrt(inner)`` when not given, as in the released code,
            and for gaussian, whose products are as wide as the input, ``1 / sqrt(channels)``. The
            paper has 1. Only softmaxes have one.
        norm: whether a batch norm follows W_z, as in the released code.
        subsample: "before" pools what phi and g are computed of, as the released code does; "after"
            pools what they give, as the paper has it: another function. The released configuration
            pools; by default nothing is pooled here.
        factor: edge of the max pools, of the last two axes of a clip. A pool at the edge may be
            smaller, so that no position is lost.
        pattern: who may read whom, without the triangle, in notation or as an object: one layer,
            for a softmax and without subsampling. Positions are numbered along the last axis first,
            and its width must be the last axis's. All positions read all when not given; for
            gaussian on a CPU an N x N tensor is then kept for the backward pass, which ``"dense"``
            avoids.

    Raises:
        UserError: unknown words, numbers that are no counts, an odd ``channels`` without ``inner``,
            a scale that is not finite or not used, or a pattern where it cannot be.
    """

    def __init__(
        self,
        channels: int,
        inner: int | None = None,
        *,
        dims: int = 2,
        similarity: str = "embedded",
        scale: float | None = None,
        norm: bool = True,
        subsample: str | None = None,
        factor: int = 2,
        pattern: PatternLike | None = None,
    ):
        super().__init__()
        require_count("channels", channels, "NonLocal")
        if inner is None:
            if channels % 2:
                raise UserError(
                    f"NonLocal is half as wide inside, but its {channels} channels are odd; give"
                    f" inner=..., such as {max(1, channels // 2)}"
                )
            inner = channels // 2
        require_count("inner", inner, "NonLocal")
        if dims not in _CONVOLUTIONS:
            raise UserError(f"dims of NonLocal is {dims!r}; positions have 1, 2 or 3 axes")
        require_choice("similarity", similarity, SIMILARITIES, "NonLocal")
        if subsample is not None:
            require_choice("subsample", subsample, SUBSAMPLES, "NonLocal")
        require_count("factor", factor, "NonLocal")
        self.channels, self.inner, self.dims = channels, inner, dims
        self.similarity, self.norm = similarity, norm
        self.subsample, self.factor = subsample, factor
        self.scale = self._checked_scale(scale)
        self.pattern = self._checked_pattern(pattern)

        convolution = _CONVOLUTIONS[dims]
        self.theta = self.phi = self.pair = None
        if similarity != "gaussian":
            self.theta = convolution(channels, inner, 1)
            self.phi = convolution(channels, inner, 1)
        if similarity == "concat":
            self.pair = nn.Linear(2 * inner, 1, bias=False)
        self.g = convolution(channels, inner, 1)
        self.project = convolution(inner, channels, 1)
        self.batch_norm = _NORMS[dims](channels) if norm else None
        self._start()

    def forward(self, x: Tensor) -> Tensor:
        """Add to each position of ``x``, ``(B, C, ...)``, what it reads; shape and type stay.

        Raises:
            UserError: ``x`` has other axes or channels, or the pattern is for rows of another
                width; or in training there is one value for each channel, and a norm.
        """
        require_maps(x, self.channels, "NonLocal", self.dims)
        if self.batch_norm is not None:
            require_variance(x, self.batch_norm, "NonLocal", "build it with norm=False")
        if self.pattern is not None:
            require_width(self.pattern, x.shape[2:], "pattern of NonLocal")
        read = self._pool(x) if self.subsample == "before" else x
        q, k = (x, read) if self.theta is None else (self.theta(x), self.phi(read))
        v = self.g(read)
        if self.subsample == "after":
            k, v = self._pool(k), self._pool(v)
        y = self._respond(*(positions_of(part) for part in (q, k, v)))
        z = self.project(maps_of(y, x.shape[2:]))
        if self.batch_norm is not None:
            z = self.batch_norm(z)
        return x + z

    def extra_repr(self) -> str:
        said = {name: getattr(self, name) for name in ("similarity", "subsample", "pattern")}
        return ", ".join(f"{name}={value}" for name, value in said.items() if value is not None)

    def _respond(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the queries ``(B, N, D)`` read: ``(B, N, inner)``, in the type of ``v``."""
        if self.scale is not None:
            layer = None if self.pattern is None else self.pattern.layers[0]
            return attend(q, k, v, scale=self.scale, layer=layer)
        dtype, M = v.dtype, v.shape[1]
        with without_autocast(v.device):
            q, k, v = (widened(part) for part in (q, k, v))
            if self.similarity == "dot":
                y = q @ (k.transpose(1, 2) @ v / M)
            else:
                of_query, of_key = widened(self.pair.weight[0]).split(self.inner)
                a, b = q @ of_query, k @ of_key  # (B, N), (B, M)
                y = torch.relu_(a[:, :, None] + b[:, None, :]) @ v / M
        return y.to(dtype)

    def _pool(self, x: Tensor) -> Tensor:
        # Time stays whole: the paper and the release pool in space.
        edges = (1, self.factor, self.factor) if self.dims == 3 else self.factor
        return _MAX_POOLS[self.dims](x, edges, ceil_mode=True)

    def _checked_scale(self, scale: float | None) -> float | None:
        if self.similarity in ("dot", "concat"):
            if scale is not None:
                raise UserError(
                    f"scale of NonLocal is {scale!r}, but similarity '{self.similarity}' is divided"
                    " by the number of positions alone; leave it out, or take 'embedded'"
                )
            return None
        if scale is None:
            return (self.channels if self.similarity == "gaussian" else self.inner) ** -0.5
        if not isinstance(scale, Real) or isinstance(scale, bool) or not isfinite(scale):
            raise UserError(f"scale of NonLocal is {scale!r}; it must be a finite number")
        return float(scale)

    def _checked_pattern(self, pattern: PatternLike | None) -> Stack | None:
        steps = steps_of(pattern, "NonLocal")
        if steps is not None:
            check_pattern_of_non_local(steps, self.similarity, self.subsample)
        return steps

    def _start(self) -> None:
        for convolution in (self.theta, self.phi, self.g, self.project, self.pair):
            if convolution is not None:
                nn.init.normal_(convolution.weight, std=FIRST_WEIGHTS)
                if convolution.bias is not None:
                    nn.init.zeros_(convolution.bias)
        nn.init.zeros_((self.project if self.batch_norm is None else self.batch_norm).weight)
