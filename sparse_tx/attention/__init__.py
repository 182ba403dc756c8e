"""Exact attention along sparse patterns. ``api`` chooses an engine; engines do not know each other."""

from sparse_tx.attention.api import resolve_engine, sparse_attention

__all__ = ["resolve_engine", "sparse_attention"]
