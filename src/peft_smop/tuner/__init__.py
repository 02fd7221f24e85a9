"""SMoP as a PEFT method; importing it registers the method with PEFT."""

from peft_smop.registration import extend_peft_types, register

extend_peft_types("SMOP")  # before SMoPConfig, which names PeftType.SMOP

from peft_smop.tuner.config import SMoPConfig  # noqa: E402
from peft_smop.tuner.model import SMoPModel  # noqa: E402
from peft_smop.tuner.refit import fit_router  # noqa: E402
from peft_smop.tuner.routes import Routes  # noqa: E402
from peft_smop.tuner.routing import Routing, RoutingStrategy  # noqa: E402
from peft_smop.tuner.strategies import STRATEGIES  # noqa: E402

register("SMOP", SMoPConfig, SMoPModel)

__all__ = [
    "STRATEGIES",
    "Routes",
    "Routing",
    "RoutingStrategy",
    "SMoPConfig",
    "SMoPModel",
    "fit_router",
]
