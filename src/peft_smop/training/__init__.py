"""One fit: trainer, batching, schedule, stopping, resume."""

from peft_smop.training.batching import LengthSampler, cut, padding_ratio
from peft_smop.training.fit import Fit, fit
from peft_smop.training.options import TrainingOptions
from peft_smop.training.progress import ProgressBar
from peft_smop.training.steps import Rows, forward_backward
from peft_smop.training.trainer import last_complete_checkpoint

__all__ = [
    "Fit",
    "LengthSampler",
    "ProgressBar",
    "Rows",
    "TrainingOptions",
    "cut",
    "fit",
    "forward_backward",
    "last_complete_checkpoint",
    "padding_ratio",
]
