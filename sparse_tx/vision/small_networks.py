"""A residual network small enough to train many times on a CPU, with room for an attention gate."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from sparse_tx.errors import UserError
from sparse_tx.vision.checks import require_count

Gate = Callable[[int], nn.Module]
"""Makes the gate of a block from the channels that it gates: ``(B, C, H, W)`` in and out."""


class SmallResNet(nn.Module):
    """Stages of basic residual blocks, then the mean over all places and a linear classifier.

    After the mean a logit is a sum of what is found in each place. Unless a gate comes in between,
    what is far away cannot change what is made of a place.
    """

    def __init__(
        self,
        channels: Sequence[int],
        blocks: int,
        classes: int,
        gate: Gate | None = None,
        *,
        in_channels: int = 1,
        stride: int = 1,
    ):
        """
        Args:
            channels: the width of each stage; each stage but the first halves height and width.
            blocks: residual blocks of each stage.
            classes: logits.
            gate: makes the gate of each block from its width; None for a network without gates.
            in_channels: of the images.
            stride: of the first convolution.

        Raises:
            UserError: a size is no whole number, 1 or more, or there is no stage.
        """
        super().__init__()
        sizes = {"blocks": blocks, "classes": classes, "in_channels": in_channels, "stride": stride}
        sizes |= {f"channels[{stage}]": width for stage, width in enumerate(channels)}
        for name, size in sizes.items():
            require_count(name, size, "SmallResNet")
        if not channels:
            raise UserError("channels is empty; give the width of at least one stage, such as 16")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels[0], 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(),
        )
        stages, before = [], channels[0]
        for stage, width in enumerate(channels):
            for block in range(blocks):
                halves = stage > 0 and block == 0
                stages.append(ResidualBlock(before, width, stride=2 if halves else 1, gate=gate))
                before = width
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of images ``(B, in_channels, H, W)``, of any H and W."""
        features = self.stages(self.stem(images))  # (B, C, H', W')
        return self.classifier(features.mean((2, 3)))


class ResidualBlock(nn.Module):
    """relu(gate(norm(conv(relu(norm(conv(x)))))) + x), with 3x3 convolutions.

    The gate stands after the last norm of the residual branch, where Squeeze-and-Excitation
    (arXiv:1709.01507, figure 3) and CBAM (arXiv:1807.06521, figure 3) have it: it scales what the
    block adds, not what passes by.
    """

    def __init__(self, before: int, width: int, *, stride: int = 1, gate: Gate | None = None):
        """
        Args:
            before: channels that come in.
            width: channels that go out.
            stride: of the first convolution. If it is not 1, or the channels change, what passes
                by goes through a 1x1 convolution with a norm.
            gate: makes the gate from ``width``.
        """
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.gate = nn.Identity() if gate is None else gate(width)
        self.passing = nn.Identity()
        if stride != 1 or before != width:
            self.passing = nn.Sequential(
                nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width, H', W')`` of ``(B, before, H, W)``; H' and W' are divided by the stride,
        rounded up."""
        return (self.gate(self.branch(x)) + self.passing(x)).relu()
