"""Typed configuration: frozen, validated when built, and stored with whatever it produced."""

from sparse_tx.config.images import pattern_for_images, settings_for_images
from sparse_tx.config.model import ModelConfig
from sparse_tx.config.presets import preset_names, preset_text
from sparse_tx.config.run import DataConfig, RunConfig, TrainingConfig
from sparse_tx.config.sampling import SamplingConfig

__all__ = [
    "DataConfig",
    "ModelConfig",
    "RunConfig",
    "SamplingConfig",
    "TrainingConfig",
    "pattern_for_images",
    "preset_names",
    "preset_text",
    "settings_for_images",
]
