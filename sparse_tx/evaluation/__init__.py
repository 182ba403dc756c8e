"""How good a model is, in bits per byte."""

from sparse_tx.evaluation.bits_per_byte import NotFinite, Score, score, tokens_within
from sparse_tx.evaluation.hugging_face import HuggingFaceModel, load_hugging_face
from sparse_tx.evaluation.min_context import Evaluation, Places, ProtocolScore, evaluate
from sparse_tx.evaluation.token_losses import LanguageModel, TrainedModel
from sparse_tx.evaluation.windows import WindowPlan, check_windows_of_images, plan_windows

__all__ = [
    "Evaluation",
    "HuggingFaceModel",
    "LanguageModel",
    "NotFinite",
    "Places",
    "ProtocolScore",
    "Score",
    "TrainedModel",
    "WindowPlan",
    "check_windows_of_images",
    "evaluate",
    "load_hugging_face",
    "plan_windows",
    "score",
    "tokens_within",
]
