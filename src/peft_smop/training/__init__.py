"""One fit: trainer, batching, schedule, stopping, resume."""

from peft_smop.training import processes
from peft_smop.training.attention import fastest_attention
from peft_smop.training.batching import LengthSampler, padding_ratio
from peft_smop.training.checkpoints import last_complete_checkpoint
from peft_smop.training.fit import Fit, Training, fit
from peft_smop.training.options import TrainingOptions, absolute_rate
from peft_smop.training.packed import fit_packed, share_backbone
from peft_smop.training.progress import ProgressBar, bars
from peft_smop.training.routing_callback import RoutingCallback
from peft_smop.training.steps import Rows, forward_backward

__all__ = [
    "Fit",
    "LengthSampler",
    "ProgressBar",
    "RoutingCallback",
    "Rows",
    "Training",
    "TrainingOptions",
    "absolute_rate",
    "bars",
    "fastest_attention",
    "fit",
    "fit_packed",
    "forward_backward",
    "last_complete_checkpoint",
    "padding_ratio",
    "processes",
    "share_backbone",
]
