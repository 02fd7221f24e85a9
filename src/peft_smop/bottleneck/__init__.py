"""Bottleneck adapters as a PEFT method; importing it registers the method with PEFT."""

from peft_smop.bottleneck.config import BottleneckConfig
from peft_smop.bottleneck.model import BottleneckModel
from peft_smop.registration import register

register("BOTTLENECK", BottleneckConfig, BottleneckModel)

__all__ = ["BottleneckConfig", "BottleneckModel"]
