"""Bottleneck adapters as a PEFT method; importing it registers the method with PEFT."""

from peft_smop.registration import extend_peft_types, register

extend_peft_types("BOTTLENECK")  # before BottleneckConfig, which names PeftType.BOTTLENECK

from peft_smop.bottleneck.config import BottleneckConfig  # noqa: E402
from peft_smop.bottleneck.model import BottleneckModel  # noqa: E402

register("BOTTLENECK", BottleneckConfig, BottleneckModel)

__all__ = ["BottleneckConfig", "BottleneckModel"]
