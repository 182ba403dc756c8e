"""The networks of the published tables, for the counter: ResNet and MobileNet with room for gates.

They are plain torch modules, and would run; but nothing trains them here. ``resnet`` and
``mobilenet`` build them on the meta device, where weights have shapes and no memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_tx.errors import UserError
from sparse_tx.vision.checks import require_choice
from sparse_tx.vision.small_networks import Gate

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks of each stage, by the number of layers of a ResNet with bottlenecks."""

PLACES = ("depthwise", "pointwise")
"""The convolutions of a MobileNet after which gates can be."""

IMAGE = (3, 224, 224)
"""The input of all published costs: channels, height and width."""

_STAGE_WIDTHS = (64, 128, 256, 512)
_WIDENING = 4
# Channels that a separable convolution gives, and its stride (arXiv:1704.04861, table 1).
_SEPARABLE = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
_CLASSES = 1000


def resnet(layers: int = 50, gate: Gate | None = None) -> "ResNet":
    """The ResNet of so many layers, on the meta device.

    Args:
        layers: one of ``BLOCKS``.
        gate: makes the gate at the end of every block from its channels; None for no gates.

    Raises:
        UserError: there is no such network.
    """
    if layers not in BLOCKS:
        raise UserError(
            f"there is no ResNet of {layers} layers here; the tables have those of 50 and 101"
        )
    with torch.device("meta"):
        return ResNet(BLOCKS[layers], gate)


def mobilenet(gate: Gate | None = None, places: Sequence[str] = PLACES) -> "MobileNet":
    """The MobileNet of width 1, on the meta device; arguments as of ``MobileNet``."""
    with torch.device("meta"):
        return MobileNet(gate, places)


def _normed(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels)]


class Bottleneck(nn.Module):
    """relu(gate(branch(x)) + x); the branch is 1x1, 3x3 and 1x1, with a norm after each.

    The stride is on the first 1x1 convolution, as in the first version (He et al. 2015,
    arXiv:1512.03385), which makes a ResNet-50 cost 3.86 GMAC where the later one costs 4.09. The
    gate stands after the last norm, where SE and CBAM have it (arXiv:1709.01507, figure 3;
    arXiv:1807.06521, figure 3).

    Args:
        before: channels that come in.
        width: channels inside; four times as many go out.
        stride: of the block.
        gate: makes the gate from the channels that go out.
    """

    def __init__(self, before: int, width: int, stride: int, gate: Gate | None):
        super().__init__()
        after = _WIDENING * width
        self.branch = nn.Sequential(
            *_normed(nn.Conv2d(before, width, 1, stride=stride, bias=False)),
            nn.ReLU(),
            *_normed(nn.Conv2d(width, width, 3, padding=1, bias=False)),
            nn.ReLU(),
            *_normed(nn.Conv2d(width, after, 1, bias=False)),
        )
        self.gate = nn.Identity() if gate is None else gate(after)
        self.passing = nn.Identity()
        if stride != 1 or before != after:
            self.passing = nn.Sequential(
                *_normed(nn.Conv2d(before, after, 1, stride=stride, bias=False))
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 4 width, H', W')`` of ``(B, before, H, W)``, halved where the stride is 2."""
        return (self.gate(self.branch(x)) + self.passing(x)).relu()


class ResNet(nn.Module):
    """A residual network of bottlenecks for images of any size, with 1,000 classes.

    Args:
        blocks: of each of the four stages.
        gate: makes the gate of every block; None for a network without gates.
    """

    def __init__(self, blocks: Sequence[int], gate: Gate | None = None):
        super().__init__()
        before, stages = _STAGE_WIDTHS[0], []
        for stage, (width, count) in enumerate(zip(_STAGE_WIDTHS, blocks, strict=True)):
            for block in range(count):
                stride = 2 if stage and not block else 1
                stages.append(Bottleneck(before, width, stride, gate))
                before = _WIDENING * width
        self.stem = nn.Sequential(
            *_normed(nn.Conv2d(3, _STAGE_WIDTHS[0], 7, stride=2, padding=3, bias=False)),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(before, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, 1000)`` of images ``(B, 3, H, W)``."""
        return self.classifier(self.stages(self.stem(images)).mean((2, 3)))


class MobileNet(nn.Module):
    """MobileNet of the first version, with 1,000 classes (Howard et al. 2017, arXiv:1704.04861).

    A block is a depthwise 3x3 and a pointwise 1x1 convolution, each with norm and ReLU. CBAM's
    table has gates after both, which alone gives its 5.07 M parameters; after the pointwise one
    only, they would be 4.72 M.

    Args:
        gate: makes a gate from the channels at its place; None for a network without gates.
        places: "depthwise", "pointwise" or both: after which convolutions gates are.

    Raises:
        UserError: a place is none of these, or ``places`` is one word and no list of them.
    """

    def __init__(self, gate: Gate | None = None, places: Sequence[str] = PLACES):
        super().__init__()
        if isinstance(places, str):
            raise UserError(
                f"places of MobileNet is {places!r}; give a list of words, such as {PLACES}"
            )
        for place in places:
            require_choice("place", place, PLACES, "MobileNet")

        def gated(convolution: nn.Conv2d, place: str) -> list[nn.Module]:
            gates = [gate(convolution.out_channels)] if gate and place in places else []
            return [*_normed(convolution), nn.ReLU(), *gates]

        before = 32
        layers = gated(nn.Conv2d(3, before, 3, stride=2, padding=1, bias=False), "stem")
        for after, stride in _SEPARABLE:
            depthwise = nn.Conv2d(
                before, before, 3, stride=stride, padding=1, groups=before, bias=False
            )
            layers += gated(depthwise, "depthwise")
            layers += gated(nn.Conv2d(before, after, 1, bias=False), "pointwise")
            before = after
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, 1000)`` of images ``(B, 3, H, W)``."""
        return self.classifier(self.layers(images).mean((2, 3)))
