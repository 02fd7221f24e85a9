"""What a method costs: meters for parameters, arithmetic, time and memory, of any model."""

from peft_smop.costs.cost import Cost, SampleFlops, mean_cost
from peft_smop.costs.flops import FlopsByLength, flops_of, inference_flops, training_flops
from peft_smop.costs.memory import PeakMemory
from peft_smop.costs.times import Times, measure

__all__ = [
    "Cost",
    "FlopsByLength",
    "PeakMemory",
    "SampleFlops",
    "Times",
    "flops_of",
    "inference_flops",
    "mean_cost",
    "measure",
    "training_flops",
]
