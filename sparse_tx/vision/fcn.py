"""A small fully convolutional network with DANet's two branches, either of which can be undone.

After Fu et al. 2019 (arXiv:1809.02983), figure 2: a trunk of convolutions, a branch of position
attention and one of channel attention, each between two 3x3 convolutions, and a classifier of their
sum. Without dilation and without pretraining, to be trained in minutes on one core.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_tx.patterns.given import PatternLike
from sparse_tx.vision.checks import require_count, require_maps
from sparse_tx.vision.convolutions import convolution
from sparse_tx.vision.dual_attention import ChannelAttention, PositionAttention

# Of the two strided convolutions together.
STRIDE = 4
# Every position reads itself alone.
SELF_ALONE = "local:1"


class SmallFCN(nn.Module):
    """Classify the pixels of images of any height and width.

    Attention that is left out is not taken away but undone: each position, or each channel, then
    reads itself alone. So every choice of ``position`` and ``channel`` has the same parameters, and
    built after the same seed the same initial weights; what differs is who reads whom.

    Two convolutions of stride 2 and one of stride 1 make the map, on which a position of the trunk
    has seen 15 x 15 pixels, and 31 x 31 once the two convolutions of its branch have run: what is
    further away reaches it by attention alone.

    Args:
        classes: classes of a pixel.
        in_channels: channels of the images.
        channels: of the map; the first convolution has half of them.
        position: pattern of the position attention, in notation or as an object, for the map's
            width; None undoes it.
        channel: form of the channel attention; None undoes it.
        reduction: how many times fewer channels queries and keys have.

    Raises:
        UserError: a number that is no count, channels that ``reduction`` does not divide, a
            pattern or a form that there is not.
    """

    def __init__(
        self,
        classes: int,
        *,
        in_channels: int = 1,
        channels: int = 32,
        position: PatternLike | None = "dense",
        channel: str | None = "reversed",
        reduction: int = 8,
    ):
        super().__init__()
        for name, value in (("classes", classes), ("in_channels", in_channels)):
            require_count(name, value, "SmallFCN")
        self.classes, self.in_channels, self.channels = classes, in_channels, channels
        self.position, self.channel, self.reduction = position, channel, reduction
        position_attention = PositionAttention(
            channels, reduction=reduction, pattern=SELF_ALONE if position is None else position
        )
        channel_attention = SelfAlone() if channel is None else ChannelAttention(form=channel)
        narrow = max(1, channels // 2)
        self.trunk = nn.Sequential(
            convolution(in_channels, narrow, stride=2),
            convolution(narrow, channels, stride=2),
            convolution(channels, channels),
        )
        self.position_branch = Branch(channels, position_attention)
        self.channel_branch = Branch(channels, channel_attention)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes, H, W)`` of images ``(B, in_channels, H, W)``."""
        require_maps(images, self.in_channels, "SmallFCN")
        x = self.trunk(images)  # (B, C, h, w)
        x = self.classifier(self.position_branch(x) + self.channel_branch(x))
        return F.interpolate(x, size=images.shape[2:], mode="bilinear", align_corners=False)


class Branch(nn.Module):
    """Attention on maps ``(B, C, H, W)`` between two 3x3 convolutions."""

    def __init__(self, channels: int, attention: nn.Module):
        super().__init__()
        self.before = convolution(channels, channels)
        self.attention = attention
        self.after = convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.attention(self.before(x)))


class SelfAlone(nn.Module):
    """Channel attention undone: each channel reads itself alone, ``x + beta * x``.

    It has the one parameter that ``ChannelAttention`` has, which also starts at 0.
    """

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """A map of the shape of ``x``, ``(B, C, H, W)``."""
        return x + self.beta * x


def map_edge(pixels: int) -> int:
    """Height or width of the map of so many pixels."""
    return -(-pixels // STRIDE)
