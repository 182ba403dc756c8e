"""Turn a trained model into text: decoding, sampling and streaming."""

from sparse_tx.generation.cached import CachedDecoder
from sparse_tx.generation.context import first_kept
from sparse_tx.generation.decoders import Decoder, RecomputeDecoder, make_decoder
from sparse_tx.generation.generate import (
    TextMaker,
    TextPiece,
    TextRequest,
    TextToken,
    generate,
    generate_texts,
    most_probable,
    text_tokens,
)
from sparse_tx.generation.native import NativeDecoder
from sparse_tx.generation.samplers import Sampler, SeenTokens, draw, next_token_probabilities
from sparse_tx.generation.streaming import StopStream, Utf8Stream

__all__ = [
    "CachedDecoder",
    "Decoder",
    "NativeDecoder",
    "RecomputeDecoder",
    "Sampler",
    "SeenTokens",
    "StopStream",
    "TextMaker",
    "TextPiece",
    "TextRequest",
    "TextToken",
    "Utf8Stream",
    "draw",
    "first_kept",
    "generate",
    "generate_texts",
    "make_decoder",
    "most_probable",
    "next_token_probabilities",
    "text_tokens",
]
