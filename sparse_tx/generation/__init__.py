"""Turn a trained model into text: decoding, sampling and streaming."""

from sparse_tx.generation.decoders import Decoder, RecomputeDecoder, first_kept, make_decoder
from sparse_tx.generation.generate import (
    TextPiece,
    TextRequest,
    TextToken,
    generate,
    generate_texts,
)
from sparse_tx.generation.samplers import Sampler, SeenTokens, draw, next_token_probabilities
from sparse_tx.generation.streaming import StopStream, Utf8Stream

__all__ = [
    "Decoder",
    "RecomputeDecoder",
    "Sampler",
    "SeenTokens",
    "StopStream",
    "TextPiece",
    "TextRequest",
    "TextToken",
    "Utf8Stream",
    "draw",
    "first_kept",
    "generate",
    "generate_texts",
    "make_decoder",
    "next_token_probabilities",
]
