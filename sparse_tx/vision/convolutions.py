"""The convolution that networks for maps are made of."""

from torch import nn


def convolution(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, its batch norm, which has the bias, and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )
