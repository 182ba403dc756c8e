"""The sparse KV cache: what a step of generation reads and what must be kept, by the pattern."""

from sparse_tx.cache.layout import Layout, layout_of
from sparse_tx.cache.store import KVCache, LayerCache

__all__ = ["KVCache", "LayerCache", "Layout", "layout_of"]
