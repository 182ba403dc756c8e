"""Exact costs from patterns and configuration alone: pairs, tiles, FLOPs, parameters, bytes.

Everything here is a whole number that a few integers decide; no tensor is made. Measured times are
set beside these numbers elsewhere.
"""

from sparse_tx.accounting.activations import (
    PeakMemory,
    attention_peak,
    inference_peak,
    training_peak,
)
from sparse_tx.accounting.flops import (
    Flops,
    Passes,
    decoding_flops,
    linear,
    matrix_product,
    nominal_flops,
    prefill_flops,
    useful_flops,
)
from sparse_tx.accounting.forward_pass import INPUTS, Workspace
from sparse_tx.accounting.generating import decoding_peak, model_in_prefill, prefill_peak
from sparse_tx.accounting.heads import PerHead, attended_pairs, keys_of_last
from sparse_tx.accounting.memory import CacheBytes, TrainingState, cache_bytes, training_state
from sparse_tx.accounting.parameters import Parameters, count_parameters
from sparse_tx.accounting.tiles import Tiling, tiles_in_columns, tiles_in_place
from sparse_tx.accounting.training import TrainingCost, training_cost

__all__ = [
    "INPUTS",
    "CacheBytes",
    "Flops",
    "Parameters",
    "Passes",
    "PeakMemory",
    "PerHead",
    "Tiling",
    "TrainingCost",
    "TrainingState",
    "Workspace",
    "attended_pairs",
    "attention_peak",
    "cache_bytes",
    "count_parameters",
    "decoding_flops",
    "decoding_peak",
    "inference_peak",
    "keys_of_last",
    "linear",
    "matrix_product",
    "model_in_prefill",
    "nominal_flops",
    "prefill_flops",
    "prefill_peak",
    "tiles_in_columns",
    "tiles_in_place",
    "training_cost",
    "training_peak",
    "training_state",
    "useful_flops",
]
