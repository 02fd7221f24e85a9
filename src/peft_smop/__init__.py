"""Sparse mixtures of soft prompts (SMoP) for frozen language models, as a plug-in for PEFT.

Importing this package registers its two methods with PEFT, the mixture and bottleneck adapters:
`get_peft_model`, `PeftModel.from_pretrained` and everything else of PEFT then work with them.
Where PEFT is not imported yet, that happens as soon as it is. Nothing else happens.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from peft_smop.arrival import leave_out_warnings, when_peft_arrives

if TYPE_CHECKING:
    from peft_smop.bottleneck import BottleneckConfig, BottleneckModel
    from peft_smop.predictor import Answer, Predictor
    from peft_smop.training import RoutingCallback
    from peft_smop.tuner import Routes, SMoPConfig, SMoPModel, fit_router

__all__ = [
    "Answer",
    "BottleneckConfig",
    "BottleneckModel",
    "Predictor",
    "Routes",
    "RoutingCallback",
    "SMoPConfig",
    "SMoPModel",
    "__version__",
    "fit_router",
]

__version__ = "0.1.0"

_HOMES = {
    "Answer": "predictor",
    "BottleneckConfig": "bottleneck",
    "BottleneckModel": "bottleneck",
    "Predictor": "predictor",
    "Routes": "tuner",
    "RoutingCallback": "training",
    "SMoPConfig": "tuner",
    "SMoPModel": "tuner",
    "fit_router": "tuner",
}

leave_out_warnings()
when_peft_arrives()


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: whoever reads a command's help needs no torch."""
    if name in _HOMES:
        import_module("peft")  # the methods are registered before one of them is handed out
        return getattr(import_module(f"peft_smop.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
