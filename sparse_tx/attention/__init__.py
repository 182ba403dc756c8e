"""Exact attention along sparse patterns: ``api`` chooses among engines that ignore each other."""

from sparse_tx.attention.api import resolve_engine, sparse_attention

__all__ = ["resolve_engine", "sparse_attention"]
