"""Language models over very long byte sequences, by sparse causal attention.

After "Generating Long Sequences with Sparse Transformers" (Child et al. 2019, arXiv:1904.10509).
"""

from sparse_tx.attention import sparse_attention
from sparse_tx.checkpoint import load_checkpoint
from sparse_tx.config import ModelConfig
from sparse_tx.generation import generate
from sparse_tx.masks import dense_mask
from sparse_tx.model import GPT
from sparse_tx.patterns import parse_pattern

__version__ = "0.1.0"

__all__ = [
    "GPT",
    "ModelConfig",
    "dense_mask",
    "generate",
    "load_checkpoint",
    "parse_pattern",
    "sparse_attention",
]
