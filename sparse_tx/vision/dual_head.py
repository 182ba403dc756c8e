"""The head of the dual attention network (DANet, arXiv:1809.02983): features to class maps."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_tx.errors import UserError, UserTypeError
from sparse_tx.patterns.given import PatternLike
from sparse_tx.vision.checks import require_count, require_maps, require_variance
from sparse_tx.vision.convolutions import convolution
from sparse_tx.vision.dual_attention import ChannelAttention, PositionAttention
from sparse_tx.vision.softmax_attention import widened


class DualLogits(NamedTuple):
    """What the head gives, ``(B, classes, H, W)`` each; predictions are made of the first."""

    sum: Tensor
    """Of both branches' features, added."""
    position: Tensor
    """Of the position branch alone."""
    channel: Tensor
    """Of the channel branch alone."""


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Class maps at another ``size``, bilinear with the corners aligned, as in the release."""
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=True)


class DualAttentionHead(nn.Module):
    """Two branches, of position and of channel attention, and three classifiers (section 3.4).

    A branch is convolution, attention, convolution; the convolutions are 3x3 without bias, with
    batch norm and ReLU, the first to ``inner`` channels. A classifier is a dropout of whole
    channels and a 1x1 convolution: one for each branch, and one for their sum.

    Args:
        channels: C of the maps.
        classes: how many logits a position gets.
        inner: width of the branches; ``channels / 4`` when not given.
        reduction: of ``PositionAttention``; it divides ``inner``.
        pattern: of ``PositionAttention``; without one, an N x N tensor is kept on a CPU, which
            ``"dense"`` avoids.
        form: of ``ChannelAttention``.
        dropout: probability that a classifier's input loses a channel.

    Raises:
        UserError: channels that 4 does not divide, without ``inner``; no probability; or what the
            attention modules refuse.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        inner: int | None = None,
        reduction: int = 8,
        pattern: PatternLike | None = None,
        form: str = "reversed",
        dropout: float = 0.1,
    ):
        super().__init__()
        require_count("channels", channels, "DualAttentionHead")
        require_count("classes", classes, "DualAttentionHead")
        if inner is None:
            if channels % 4:
                raise UserError(
                    f"DualAttentionHead is a quarter as wide inside, but 4 does not divide its"
                    f" {channels} channels; give inner=..., such as {max(1, channels // 4)}"
                )
            inner = channels // 4
        require_count("inner", inner, "DualAttentionHead")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout of DualAttentionHead is {dropout}; it must be in [0, 1)")
        self.channels, self.classes, self.inner = channels, classes, inner
        self.reduction, self.form, self.dropout = reduction, form, dropout
        position = PositionAttention(inner, reduction, pattern=pattern)
        self.pattern = position.pattern
        self.position = _branch(channels, inner, position)
        self.channel = _branch(channels, inner, ChannelAttention(form))
        self.classify_sum = _classifier(inner, classes, dropout)
        self.classify_position = _classifier(inner, classes, dropout)
        self.classify_channel = _classifier(inner, classes, dropout)

    def forward(self, x: Tensor) -> DualLogits:
        """The three class maps of ``x``, ``(B, C, H, W)``, at its size.

        Raises:
            UserError: ``x`` has other axes or channels, or a width that the pattern is not for; or
                in training there is one value for each channel.
        """
        require_maps(x, self.channels, "DualAttentionHead")
        for module in self.modules():
            require_variance(x, module, "DualAttentionHead")
        position, channel = self.position(x), self.channel(x)
        return DualLogits(
            sum=self.classify_sum(position + channel),
            position=self.classify_position(position),
            channel=self.classify_channel(channel),
        )

    @staticmethod
    def loss(
        outputs: DualLogits,
        target: Tensor,
        *,
        weights: Sequence[float] = (1.0, 1.0, 1.0),
        ignore_index: int = -1,
    ) -> Tensor:
        """The weighted sum of the outputs' cross entropies, in nats per position that counts.

        Args:
            outputs: what ``forward`` gave, upsampled here to the size of ``target``.
            target: classes ``(B, H', W')``, int64.
            weights: of the sum's, the position branch's and the channel branch's cross entropy; the
                release has 1 for each.
            ignore_index: the class of positions that do not count. If none counts, the loss is 0.

        Raises:
            UserTypeError: ``outputs`` is a tensor, or ``target`` does not hold int64.
            UserError: there are not three outputs and three weights, or shapes do not match.
        """
        if isinstance(outputs, Tensor):
            raise UserTypeError(
                "DualAttentionHead.loss was called with one tensor; give it all three outputs of"
                " the head"
            )
        if len(outputs) != 3 or len(weights) != 3:
            raise UserError(
                f"DualAttentionHead.loss was called with {len(outputs)} outputs and {len(weights)}"
                " weights; there are three of each"
            )
        if target.dtype != torch.int64:
            raise UserTypeError(
                f"target is {target.dtype}; it must hold classes as torch.int64, as target.long()"
                " gives"
            )
        if target.dim() != 3 or len(target) != len(outputs[0]):
            raise UserError(
                f"target has shape {tuple(target.shape)}; it must be (B, H, W), with"
                f" {len(outputs[0])} maps as the outputs"
            )
        counting = (target != ignore_index).sum().clamp(min=1)
        total = 0
        for logits, weight in zip(outputs, weights, strict=True):
            full_size = upsample(widened(logits), target.shape[1:])
            summed = F.cross_entropy(full_size, target, ignore_index=ignore_index, reduction="sum")
            total = total + weight * summed / counting
        return total


def _branch(channels: int, inner: int, attention: nn.Module) -> nn.Sequential:
    return nn.Sequential(convolution(channels, inner), attention, convolution(inner, inner))


def _classifier(inner: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(inner, classes, 1))
