"""The names that a user types, and what stands behind them; nothing heavy is imported here.

So a command can say what there is, and what a typing error meant, before torch is needed.
"""

from peft_smop.names.fields import (
    MAX_PADDING,
    MethodFields,
    OptionField,
    TrainingFields,
    check_values,
    fields_of,
)
from peft_smop.names.formats import FORMATS, check_format
from peft_smop.names.methods import (
    DESCRIBED,
    PROMPT_RATES,
    PROMPT_SPREADS,
    RATE,
    RECIPES,
    WEIGHT_RATES,
    Described,
    Rate,
    is_rate,
)
from peft_smop.names.models import DEFAULT_MODEL, KNOWN_NAMES
from peft_smop.names.options import (
    check_options,
    check_routing,
    method_options,
    routings,
    training_options,
)
from peft_smop.names.variants import SHORT, Listed, listed, options_in, typed

__all__ = [
    "DEFAULT_MODEL",
    "DESCRIBED",
    "FORMATS",
    "KNOWN_NAMES",
    "MAX_PADDING",
    "PROMPT_RATES",
    "PROMPT_SPREADS",
    "RATE",
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
    "check_options",
    "check_routing",
    "check_values",
    "fields_of",
    "is_rate",
    "listed",
    "method_options",
    "options_in",
    "routings",
    "training_options",
    "typed",
]
