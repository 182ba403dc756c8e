"""From bytes to batches: sources of text and images, tokenizers, prepared corpora, loaders."""

from sparse_tx.data.corpus import Corpus, prepare_corpus
from sparse_tx.data.images import CHANNELS, ImageShape, read_image, shape_in_words
from sparse_tx.data.loader import StagedLoader
from sparse_tx.data.sources import Source, image_shape_of, open_source
from sparse_tx.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
)

__all__ = [
    "CHANNELS",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "Corpus",
    "ImageShape",
    "Source",
    "StagedLoader",
    "Tokenizer",
    "image_shape_of",
    "load_tokenizer",
    "open_source",
    "prepare_corpus",
    "read_image",
    "shape_in_words",
    "train_tokenizer",
]
