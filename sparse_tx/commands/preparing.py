"""Read a corpus while a person waits."""

import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sparse_tx.config import DataConfig, RunConfig
from sparse_tx.data import Corpus, Tokenizer, prepare_corpus
from sparse_tx.errors import UserError
from sparse_tx.folders import default_cache_dir


def with_usable_cache(data: DataConfig) -> DataConfig:
    """A run's data, for who only reads the run: of another machine, its cache may not be here."""
    folder = data.cache_dir
    if folder and os.path.isdir(folder) and os.access(folder, os.W_OK):
        return data
    return replace(data, cache_dir=None)


def prepare_with_status(
    console: Console, config: RunConfig, existing_tokenizer: Tokenizer | None
) -> Corpus:
    """Prepare the corpus that ``config`` names, showing on a terminal how far it is.

    Raises:
        UserError: see ``prepare_corpus``; there is nothing to validate with.
    """
    corpus = read_with_status(
        console, config.data, existing_tokenizer, vocab_size=config.model.vocab_size
    )
    if len(corpus.valid) == 0:
        raise UserError(
            f"the validation split of '{config.data.data}' is empty; give it a share with --split"
        )
    return corpus


def read_with_status(
    console: Console,
    data: DataConfig,
    existing_tokenizer: Tokenizer | None,
    *,
    vocab_size: int = 256,
) -> Corpus:
    """The same, where any split may be empty; ``vocab_size`` is the aim of a new bpe tokenizer.

    Raises:
        UserError: see ``prepare_corpus``.
    """
    with console.status(f"preparing {data.data}") as status:

        def show_progress(what: str, n_bytes: int) -> None:
            status.update(f"{what}: {n_bytes / 1e6:,.0f} MB")

        return prepare_corpus(
            data.data,
            tokenizer=data.tokenizer,
            vocab_size=vocab_size,
            split=data.split,
            image_shape=data.image_shape,
            cache_dir=Path(data.cache_dir) if data.cache_dir else default_cache_dir(),
            existing_tokenizer=existing_tokenizer,
            progress=show_progress,
        )
