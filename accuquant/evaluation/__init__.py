"""Judge an exported model on many images: figures with intervals, resumable, in constant memory."""

from .evaluate import evaluate
from .evaluation_settings import EvaluationSettings
from .result import Evaluation

__all__ = ["Evaluation", "EvaluationSettings", "evaluate"]
