"""Who may look at whom: the sparse patterns, as plain values without tensors."""

from sparse_tx.patterns.algebra import (
    BlockLocal,
    Dense,
    Fixed,
    Local,
    Pattern,
    Strided,
    Summary,
    Union,
)
from sparse_tx.patterns.keyset import Comb, KeySet
from sparse_tx.patterns.maps import Columns, CrissCross, Lattice, Rows, Tiles
from sparse_tx.patterns.notation import parse_layer, parse_pattern
from sparse_tx.patterns.reachability import Reachability, reachability
from sparse_tx.patterns.stacks import Layer, Stack

__all__ = [
    "BlockLocal",
    "Columns",
    "Comb",
    "CrissCross",
    "Dense",
    "Fixed",
    "KeySet",
    "Lattice",
    "Layer",
    "Local",
    "Pattern",
    "Reachability",
    "Rows",
    "Stack",
    "Strided",
    "Summary",
    "Tiles",
    "Union",
    "parse_layer",
    "parse_pattern",
    "reachability",
]
