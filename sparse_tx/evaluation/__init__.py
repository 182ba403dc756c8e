"""How good a model is, in bits per byte."""

from sparse_tx.evaluation.bits_per_byte import NotFinite, Score, score

__all__ = ["NotFinite", "Score", "score"]
