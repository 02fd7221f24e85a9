"""The methods: what each is, takes and costs, apart from how it is configured."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

PROMPT_RATES = (0.5, 0.3, 0.1)
"""The paper's learning rates for prompts (appendix C), searched in this order."""
WEIGHT_RATES = (1e-4, 5e-5, 1e-5)
"""The paper's learning rates for adapters and for full fine-tuning (appendix C)."""
PROMPT_SPREADS = ("1.5x", "0.4x", "4x")
"""Learning rates for prompts in spreads of the backbone's embeddings, searched in this order: what
is far for one backbone's embeddings is nothing for another's (`docs/runs.md`)."""
NETWORK_RATES = (1e-2, 3e-3, 3e-2)
"""Learning rates for a network that prompts come from, searched in this order."""
ADDED_RATES = (3e-3, 1e-3, 3e-4)
"""Learning rates for weights that are added to a backbone's, searched in this order."""
WHOLE_RATES = (1e-4, 3e-4, 1e-3)
"""Learning rates for all weights of a backbone, searched in this order."""
RECIPES = ("default", "paper")
"""By which a method is trained where nothing else is said: prompts at rates that go by the
backbone's own scale and without its dropout, or the paper's protocol."""

Rate = float | str
"""A learning rate: a number, or a number of spreads of the backbone's embeddings, such as 0.4x."""
RATE = "a number above 0, or of spreads of the embeddings, such as 0.4x"
"""What a value that is no rate is told to be."""


def is_rate(value: Any) -> bool:
    """Whether a value is a learning rate, and one that moves anything."""
    if isinstance(value, str):
        return bool(re.fullmatch(r"\d+(\.\d+)?x", value)) and 0 < float(value[:-1]) < 1e6
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < math.inf


_INIT = frozenset({"init", "init_std", "init_text", "init_adapter"})
_PROMPT = _INIT | {
    *("num_virtual_tokens", "position", "pooling", "parameterisation", "hidden_size", "rank")
}


@dataclass(frozen=True)
class Described:
    """What is said of a method."""

    description: str
    options: frozenset[str]
    """Without those of routing strategies, which a method that `routes` takes too."""
    learning_rates: tuple[float, ...]
    virtual_tokens: int = 0
    """The default length of the prompt before an input."""
    routes: bool = False
    default_rates: tuple[Rate, ...] = ()
    """Those of the default recipe, where they are others than the paper's."""

    def rates(self, recipe: str) -> tuple[Rate, ...]:
        """The learning rates of a recipe, the default first."""
        own = self.default_rates if recipe == "default" else ()
        return own or self.learning_rates

    def drops(self, recipe: str) -> bool:
        """Whether the backbone's own dropout is on in training, by a recipe.

        A prompt has few numbers to overfit with, and every mask is noise in all that it says.
        """
        return recipe == "paper" or self.learning_rates != PROMPT_RATES


DESCRIBED: dict[str, Described] = {
    "smop": Described(
        "sparse mixture of soft prompts: k prompts of l tokens and a router",
        _PROMPT | {"num_prompts", "routing"},
        PROMPT_RATES,
        virtual_tokens=5,
        default_rates=PROMPT_SPREADS,
        routes=True,
    ),
    "single": Described(
        "one soft prompt of l tokens, through our tuner",
        _PROMPT,
        PROMPT_RATES,
        virtual_tokens=5,
        default_rates=PROMPT_SPREADS,
    ),
    "told": Described(
        "one soft prompt of l tokens for each sub-population, told which (a control)",
        _PROMPT,
        PROMPT_RATES,
        virtual_tokens=5,
        default_rates=PROMPT_SPREADS,
    ),
    "prompt-tuning": Described(
        "one soft prompt of l tokens, PEFT's own",
        frozenset({"num_virtual_tokens"}),
        PROMPT_RATES,
        virtual_tokens=5,
        default_rates=PROMPT_SPREADS,
    ),
    "p-tuning": Described(
        "one soft prompt of l tokens behind an MLP (Liu et al., 2021)",
        frozenset({"num_virtual_tokens", "hidden_size"}),
        PROMPT_RATES,
        virtual_tokens=20,
        default_rates=NETWORK_RATES,
    ),
    "prefix-tuning": Described(
        "trained keys and values before every layer's own (Li and Liang, 2021)",
        frozenset({"num_virtual_tokens"}),
        PROMPT_RATES,
        virtual_tokens=20,
    ),
    "lora": Described(
        "low-rank changes of the queries' and values' weights (Hu et al., 2022)",
        frozenset({"rank"}),
        WEIGHT_RATES,
        default_rates=ADDED_RATES,
    ),
    "ia3": Described(
        "trained scales of keys, values and feed-forward (Liu et al., 2022)",
        frozenset(),
        WEIGHT_RATES,
        default_rates=ADDED_RATES,
    ),
    "houlsby": Described(
        "bottlenecks after attention and after feed-forward (Houlsby et al., 2019)",
        frozenset({"bottleneck_size"}),
        WEIGHT_RATES,
        default_rates=ADDED_RATES,
    ),
    "pfeiffer": Described(
        "bottlenecks after feed-forward (Pfeiffer et al., 2021)",
        frozenset({"bottleneck_size"}),
        WEIGHT_RATES,
        default_rates=ADDED_RATES,
    ),
    "full": Described(
        "full fine-tuning: every weight of the backbone",
        frozenset(),
        WEIGHT_RATES,
        default_rates=WHOLE_RATES,
    ),
}
