"""How good a model is, in bits per byte."""

from sparse_tx.evaluation.bits_per_byte import NotFinite, Score, score, tokens_within
from sparse_tx.evaluation.min_context import Evaluation, Places, ProtocolScore, evaluate
from sparse_tx.evaluation.token_losses import LanguageModel, TrainedModel
from sparse_tx.evaluation.windows import WindowPlan, plan_windows

__all__ = [
    "Evaluation",
    "LanguageModel",
    "NotFinite",
    "Places",
    "ProtocolScore",
    "Score",
    "TrainedModel",
    "WindowPlan",
    "evaluate",
    "plan_windows",
    "score",
    "tokens_within",
]
