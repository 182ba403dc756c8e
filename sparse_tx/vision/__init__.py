"""Attention for feature maps: modules that take ``(B, C, H, W)`` and give it back."""

from sparse_tx.vision.cbam import CBAM, ChannelGate, SpatialGate
from sparse_tx.vision.counting import NetworkCost, count_network
from sparse_tx.vision.dual_attention import ChannelAttention, PositionAttention
from sparse_tx.vision.dual_head import DualAttentionHead, DualLogits
from sparse_tx.vision.non_local import NonLocal
from sparse_tx.vision.squeeze_excite import SqueezeExcite

__all__ = [
    "CBAM",
    "ChannelAttention",
    "ChannelGate",
    "DualAttentionHead",
    "DualLogits",
    "NetworkCost",
    "NonLocal",
    "PositionAttention",
    "SpatialGate",
    "SqueezeExcite",
    "count_network",
]
