"""Sparse mixtures of soft prompts (SMoP) for frozen language models, as a plug-in for PEFT.

Importing this package registers its two methods with PEFT, the mixture and bottleneck adapters:
`get_peft_model`, `PeftModel.from_pretrained` and everything else of PEFT then work with them.
Nothing else happens.
"""

from peft_smop.bottleneck import BottleneckConfig, BottleneckModel
from peft_smop.registration import leave_out_warnings
from peft_smop.tuner import Routes, SMoPConfig, SMoPModel

__all__ = [
    "BottleneckConfig",
    "BottleneckModel",
    "Routes",
    "SMoPConfig",
    "SMoPModel",
    "__version__",
]

__version__ = "0.1.0"

leave_out_warnings()
