"""Position and channel attention of the dual attention network (DANet, arXiv:1809.02983)."""

import torch
from torch import Tensor, nn

from sparse_tx.errors import UserError
from sparse_tx.patterns import Layer
from sparse_tx.patterns.given import PatternLike, require_width
from sparse_tx.vision.checks import (
    require_choice,
    require_maps,
    require_reduction,
)
from sparse_tx.vision.softmax_attention import (
    attend,
    maps_of,
    positions_of,
    steps_of,
    widened,
    without_autocast,
)

FORMS = ("reversed", "plain", "scaled")


class PositionAttention(nn.Module):
    """``x + alpha * softmax(Q K^T) V`` over positions (section 3.2), exactly ``x`` at the start.

    Q, K and V are 1x1 convolutions with biases; nothing divides the energies, which are float32 at
    least; and ``alpha``, one number, starts at 0.

    Along a pattern of several layers, such as ``"rows:97,columns:97"``, the whole step is repeated
    with the same weights: what the first has given, ``x`` included, is the input of the second.
    So ``"crisscross:97*2"`` is the recurrence of CCNet with R = 2 (arXiv:1811.11721, section 3.3).

    Args:
        channels: C of the maps.
        reduction: how many times narrower Q and K are; it divides ``channels``. The released code
            has 8, the paper 1.
        pattern: who may read whom, without the triangle, in notation or as an object; its width
            must be that of the maps. All positions read all when not given; on a CPU an N x N
            tensor is then kept for the backward pass, because torch has no fused kernel there for
            queries narrower than values. ``"dense"`` is the same function and keeps none, but is
            differentiable only once.

    Raises:
        UserError: ``reduction`` does not divide ``channels``; a pattern that cannot be read or has
            groups of heads.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 8,
        *,
        pattern: PatternLike | None = None,
    ):
        super().__init__()
        require_reduction(reduction, channels, "PositionAttention")
        self.channels, self.reduction = channels, reduction
        self.pattern = steps_of(pattern, "PositionAttention")
        self.query = nn.Conv2d(channels, channels // reduction, 1)
        self.key = nn.Conv2d(channels, channels // reduction, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the positions of ``x``, ``(B, C, H, W)``; shape and type stay.

        Raises:
            UserError: ``x`` has other axes or channels, or the pattern is for rows of another
                width.
        """
        self._require(x)
        for layer in self._layers:
            x = self._step(x, layer)
        return x

    def weights_of(self, x: Tensor, position: int, step: int = 0) -> Tensor:
        """How much each position counts where ``position`` reads, in float32 at least.

        Args:
            x: the module's input, ``(B, C, H, W)``.
            position: of the query, ``row * W + column``.
            step: which layer of the pattern, counted from 0; the ones before are applied to ``x``.

        Returns:
            ``(B, H, W)``; each map sums to 1, and is 0 where the query may not read. The map of a
            query that may read nothing is 0 everywhere.

        Raises:
            UserError: as ``forward``; or there is no such position or step.
        """
        self._require(x)
        H, W = x.shape[2:]
        limits = (("position", position, H * W), ("step", step, len(self._layers)))
        for name, value, limit in limits:
            if not 0 <= value < limit:
                raise UserError(f"{name} {value} of PositionAttention: it is 0 to {limit - 1} here")
        for layer in self._layers[:step]:
            x = self._step(x, layer)
        query, keys = (widened(positions_of(project(x))) for project in (self.query, self.key))
        with without_autocast(x.device):
            energies = (keys @ query[:, position, :, None]).squeeze(2)  # (B, N)
        if (layer := self._layers[step]) is None:
            weights = energies.softmax(1)
        else:
            others = torch.arange(H * W, device=x.device)
            hidden = ~layer.at(0, 1).allows(position, others, causal=False)
            # Where nothing is left, a softmax of -inf is NaN.
            weights = energies.masked_fill(hidden, -torch.inf).softmax(1).masked_fill(hidden, 0)
        return weights.unflatten(1, (H, W))

    def extra_repr(self) -> str:
        return "" if self.pattern is None else f"pattern={self.pattern}"

    @property
    def _layers(self) -> tuple[Layer | None, ...]:
        return (None,) if self.pattern is None else self.pattern.layers

    def _require(self, x: Tensor) -> None:
        require_maps(x, self.channels, "PositionAttention")
        if self.pattern is not None:
            require_width(self.pattern, x.shape[2:], "pattern of PositionAttention")

    def _step(self, x: Tensor, layer: Layer | None) -> Tensor:
        q, k, v = (positions_of(project(x)) for project in (self.query, self.key, self.value))
        out = maps_of(attend(q, k, v, scale=1.0, layer=layer), x.shape[2:])
        return x + (self.alpha * out).to(x.dtype)


class ChannelAttention(nn.Module):
    """``x + beta * A X`` over channels (section 3.3), exactly ``x`` at the start.

    X is ``x`` with a row of N positions for each channel and A a softmax over the rows of the Gram
    matrix E = X X^T: there are no projections. The one parameter, ``beta``, starts at 0. On maps
    after a ReLU the paper's softmax(E) is nearly the identity, because a channel is most like
    itself; the released code reverses it.

    Args:
        form: "reversed", softmax(max(E) - E) by rows, as the released code; "plain", softmax(E), as
            the paper; "scaled", softmax(E / N).

    Raises:
        UserError: an unknown form.
    """

    def __init__(self, form: str = "reversed"):
        super().__init__()
        require_choice("form", form, FORMS, "ChannelAttention")
        self.form = form
        self.beta = nn.Parameter(torch.zeros(1))

    def weights_of(self, x: Tensor) -> Tensor:
        """The matrix A, ``(B, C, C)``, float32 at least; its rows sum to 1."""
        require_maps(x, None, "ChannelAttention")
        return self._weights(widened(x.flatten(2)))

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the channels of ``x``, ``(B, C, H, W)``; shape and type stay."""
        require_maps(x, None, "ChannelAttention")
        rows = widened(x.flatten(2))  # (B, C, N)
        with without_autocast(x.device):
            out = self._weights(rows) @ rows
        return x + (self.beta * out.unflatten(2, x.shape[2:])).to(x.dtype)

    def extra_repr(self) -> str:
        return f"form={self.form}"

    def _weights(self, rows: Tensor) -> Tensor:
        with without_autocast(rows.device):
            energies = rows @ rows.transpose(1, 2)
        # A softmax is the same whatever is added to its row: softmax(max(E) - E) is softmax(-E),
        # and torch's own largest exponent is 0 then too.
        if self.form == "reversed":
            energies = -energies
        elif self.form == "scaled":
            energies = energies / rows.shape[2]
        return energies.softmax(2)
