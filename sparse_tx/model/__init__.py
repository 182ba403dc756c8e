"""The decoder."""

from sparse_tx.model.gpt import GPT

__all__ = ["GPT"]
