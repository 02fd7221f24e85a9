"""Sparse mixtures of soft prompts (SMoP) for frozen language models, as a plug-in for PEFT.

Importing this package registers its two methods with PEFT, the mixture and bottleneck adapters:
`get_peft_model`, `PeftModel.from_pretrained` and everything else of PEFT then work with them.
Nothing else happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft_smop.bottleneck import BottleneckConfig, BottleneckModel
from peft_smop.registration import leave_out_warnings
from peft_smop.tuner import Routes, SMoPConfig, SMoPModel

if TYPE_CHECKING:
    from peft_smop.training import RoutingCallback

__all__ = [
    "BottleneckConfig",
    "BottleneckModel",
    "Routes",
    "RoutingCallback",
    "SMoPConfig",
    "SMoPModel",
    "__version__",
]

__version__ = "0.1.0"

leave_out_warnings()


def __getattr__(name: str) -> Any:
    """Import the callback when it is asked for: a Trainer's needs are not everyone's."""
    if name == "RoutingCallback":
        from peft_smop.training import RoutingCallback

        return RoutingCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
