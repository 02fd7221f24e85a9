"""What a method costs: meters for memory and arithmetic."""

from peft_smop.costs.flops import training_flops
from peft_smop.costs.memory import PeakMemory

__all__ = ["PeakMemory", "training_flops"]
