"""What the input of a text's latest token is looked up by, kept up to date as the text grows."""

from collections.abc import Sequence

import torch

from sparse_tx.config import ModelConfig
from sparse_tx.config.model import RECALL_LENGTHS
from sparse_tx.model.lookups import hash_further, ngram_rows, row_of_hash


class GrowingText:
    """A text, start symbol included, that takes one token at a time.

    Whatever its length, a token costs the same: of the places where n-grams stood, the latest is
    remembered.

    Args:
        config: of the model that reads it.
        tokens: the text so far; may be empty.

    Attributes:
        tokens: the whole text.
    """

    def __init__(self, config: ModelConfig, tokens: Sequence[int] = ()):
        self.config = config
        self.tokens = list(tokens)
        self._longest = max([*config.ngrams, config.recall])
        self._latest: dict[int, int] = {}
        if config.recall and self.tokens:
            whole = torch.tensor([self.tokens])
            hashes = ngram_rows(whole, (config.recall,), 1 << 31)[0, :, 0].tolist()
            self._latest = {key: place for place, key in enumerate(hashes)}

    def copy(self) -> "GrowingText":
        """A text of its own that is so far the same."""
        copy = GrowingText(self.config)
        copy.tokens, copy._latest = list(self.tokens), dict(self._latest)
        return copy

    def append(self, token: int) -> list[int]:
        """Take a token; returns the rows of the look-ups that it reads (``Lookups.rows``)."""
        config, tokens = self.config, self.tokens
        tokens.append(token)
        rows, hashed, recalled = [], 0, None
        for back in range(self._longest):
            hashed = hash_further(hashed, tokens[-1 - back] + 1 if back < len(tokens) else 0)
            if back + 1 in config.ngrams:
                rows.append(row_of_hash(hashed) % config.ngram_rows + len(rows) * config.ngram_rows)
            if back + 1 == config.recall:
                recalled = self._recalled_row(row_of_hash(hashed))
        return rows if recalled is None else [*rows, recalled]

    def recent(self) -> list[int]:
        """The latest ``recent_tokens`` tokens, latest first, start symbols before the text."""
        n, start = self.config.recent_tokens, self.config.vocab_size
        found = self.tokens[: -1 - n : -1]
        return found + [start] * (n - len(found))

    def _recalled_row(self, key: int) -> int:
        config, tokens = self.config, self.tokens
        at = len(tokens) - 1
        before, self._latest[key] = self._latest.get(key), at
        first = len(config.ngrams) * config.ngram_rows
        if before is None:
            return first
        agree, most = 0, min(config.recall + RECALL_LENGTHS - 1, before + 1)
        while agree < most and tokens[before - agree] == tokens[at - agree]:
            agree += 1
        if agree < config.recall:  # the hash is in common by chance
            return first
        longer = agree - config.recall
        return first + 1 + longer * (config.vocab_size + 1) + tokens[before + 1]
