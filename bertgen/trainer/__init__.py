"""Training: a file of sentence pairs in, a checkpoint out."""

from .loop import Trainer, TrainingResult
from .options import TrainingConfig

__all__ = ["Trainer", "TrainingConfig", "TrainingResult"]
