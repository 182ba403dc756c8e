"""Prove that nothing from the future leaks into a model, and that all it may read can reach it.

Three rounds, each on the model at hand: ``heads`` looks at attention alone, every head by every
engine; ``flips`` and ``gradients`` at all layers together, from a token to the logits, and
``lookups`` at what is looked up beside them; ``decoding`` at the ways of getting the same logits
token by token. What a pattern allows is asked of ``Pattern.allows``, and
what a stack of layers connects of ``patterns.reachability``.
"""

from sparse_tx.evaluation.audit.decoding import DecodingPath
from sparse_tx.evaluation.audit.engines import choose_engines
from sparse_tx.evaluation.audit.findings import (
    Audit,
    DecoderProof,
    Fault,
    HeadsProof,
    ModelProof,
)
from sparse_tx.evaluation.audit.lengths import LONGEST, Lengths, choose_lengths
from sparse_tx.evaluation.audit.rounds import audit
from sparse_tx.evaluation.audit.untrained import draw_weights_if_untrained

__all__ = [
    "LONGEST",
    "Audit",
    "DecoderProof",
    "DecodingPath",
    "Fault",
    "HeadsProof",
    "Lengths",
    "ModelProof",
    "audit",
    "choose_engines",
    "choose_lengths",
    "draw_weights_if_untrained",
]
