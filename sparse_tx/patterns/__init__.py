"""Who may look at whom: the sparse lower-triangular patterns, as plain values without tensors."""

from sparse_tx.patterns.algebra import (
    BlockLocal,
    Dense,
    Fixed,
    Layer,
    Local,
    Pattern,
    Stack,
    Strided,
    Summary,
    Union,
)
from sparse_tx.patterns.keyset import Comb, KeySet
from sparse_tx.patterns.notation import parse_layer, parse_pattern
from sparse_tx.patterns.reachability import Reachability, reachability

__all__ = [
    "BlockLocal",
    "Comb",
    "Dense",
    "Fixed",
    "KeySet",
    "Layer",
    "Local",
    "Pattern",
    "Reachability",
    "Stack",
    "Strided",
    "Summary",
    "Union",
    "parse_layer",
    "parse_pattern",
    "reachability",
]
