"""Turn a trained model into text: decoding, sampling and streaming."""

from sparse_tx.generation.decoders import Decoder, RecomputeDecoder, first_kept
from sparse_tx.generation.generate import generate
from sparse_tx.generation.samplers import draw, next_token_probabilities
from sparse_tx.generation.streaming import Utf8Stream

__all__ = [
    "Decoder",
    "RecomputeDecoder",
    "Utf8Stream",
    "draw",
    "first_kept",
    "generate",
    "next_token_probabilities",
]
