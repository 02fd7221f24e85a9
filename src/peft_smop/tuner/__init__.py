"""SMoP as a PEFT method; importing it registers the method with PEFT."""

from peft_smop.registration import register
from peft_smop.tuner.config import SMoPConfig
from peft_smop.tuner.model import SMoPModel
from peft_smop.tuner.refit import fit_router
from peft_smop.tuner.routes import Routes
from peft_smop.tuner.routing import Routing, RoutingStrategy
from peft_smop.tuner.strategies import STRATEGIES
from peft_smop.tuner.verification import reads_first

register("SMOP", SMoPConfig, SMoPModel)

__all__ = [
    "STRATEGIES",
    "Routes",
    "Routing",
    "RoutingStrategy",
    "SMoPConfig",
    "SMoPModel",
    "fit_router",
    "reads_first",
]
