"""Exact attention along sparse patterns: ``api`` chooses among engines that ignore each other."""

from sparse_tx.attention.api import (
    check_engine_name,
    resolve_engine,
    sparse_attention,
    workspace_bytes,
)

__all__ = ["check_engine_name", "resolve_engine", "sparse_attention", "workspace_bytes"]
