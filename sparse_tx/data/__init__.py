"""From bytes to batches: text sources, tokenizers, prepared corpora and resumable loaders."""

from sparse_tx.data.corpus import Corpus, prepare_corpus
from sparse_tx.data.loader import StagedLoader
from sparse_tx.data.sources import Source, open_source
from sparse_tx.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
)

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "Corpus",
    "Source",
    "StagedLoader",
    "Tokenizer",
    "load_tokenizer",
    "open_source",
    "prepare_corpus",
    "train_tokenizer",
]
