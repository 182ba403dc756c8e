"""Turn a trained model into text: decoding, sampling and streaming."""

from sparse_tx.generation.cached import CachedDecoder
from sparse_tx.generation.context import first_kept
from sparse_tx.generation.decoders import Decoder, RecomputeDecoder, make_decoder
from sparse_tx.generation.generate import generate
from sparse_tx.generation.native import NativeDecoder
from sparse_tx.generation.samplers import draw, next_token_probabilities
from sparse_tx.generation.streaming import Utf8Stream

__all__ = [
    "CachedDecoder",
    "Decoder",
    "NativeDecoder",
    "RecomputeDecoder",
    "Utf8Stream",
    "draw",
    "first_kept",
    "generate",
    "make_decoder",
    "next_token_probabilities",
]
