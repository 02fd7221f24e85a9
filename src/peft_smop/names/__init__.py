"""The names that a user types, and what stands behind them; nothing heavy is imported here.

So a command can say what there is, and what a typing error meant, before torch is needed.
"""

from peft_smop.names.fields import (
    MAX_PADDING,
    MethodFields,
    OptionField,
    TrainingFields,
    fields_of,
)
from peft_smop.names.formats import FORMATS, check_format
from peft_smop.names.methods import (
    DESCRIBED,
    PROMPT_RATES,
    PROMPT_SPREADS,
    RECIPES,
    WEIGHT_RATES,
    Described,
    Rate,
)
from peft_smop.names.models import DEFAULT_MODEL, KNOWN_NAMES
from peft_smop.names.options import (
    check_options,
    check_routing,
    method_options,
    routings,
    training_options,
)
from peft_smop.names.variants import SHORT, Listed, check_names, listed, typed

__all__ = [
    "DEFAULT_MODEL",
    "DESCRIBED",
    "FORMATS",
    "KNOWN_NAMES",
    "MAX_PADDING",
    "PROMPT_RATES",
    "PROMPT_SPREADS",
    "RECIPES",
    "SHORT",
    "WEIGHT_RATES",
    "Described",
    "Listed",
    "MethodFields",
    "OptionField",
    "Rate",
    "TrainingFields",
    "check_format",
    "check_names",
    "check_options",
    "check_routing",
    "fields_of",
    "listed",
    "method_options",
    "routings",
    "training_options",
    "typed",
]
