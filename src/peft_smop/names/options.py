"""The names of options, for answers to typing errors before torch is imported.

The options themselves are fields of `MethodSpec` and `TrainingOptions`, and the strategies a table;
a test holds these names to them.
"""

from __future__ import annotations

from collections.abc import Iterable

from peft_smop.errors import unknown

METHOD_OPTIONS = (
    "balance",
    "bottleneck_size",
    "candidates",
    "consistency",
    "every",
    "evidence",
    "exact",
    "final_temperature",
    "fixed_prompt",
    "hidden_size",
    "init",
    "init_adapter",
    "init_std",
    "init_text",
    "judged",
    "load_balancing",
    "name",
    "num_prompts",
    "num_virtual_tokens",
    "parameterisation",
    "perturbation",
    "position",
    "rank",
    "router_dropout",
    "routing",
    "temperature",
    "top_k",
    "z_loss",
)
TRAINING_OPTIONS = (
    "batch_size",
    "dropout",
    "epochs",
    "eval_steps",
    "gradient_checkpointing",
    "head_learning_rate",
    "keep_texts",
    "learning_rate",
    "max_length",
    "max_padding",
    "max_steps",
    "network_learning_rate",
    "optimizer",
    "patience",
    "precision",
    "recipe",
    "revive_dead_prompts",
    "router_learning_rate",
    "schedule",
    "warmup_ratio",
    "weight_decay",
)
ROUTINGS = (
    "linear",
    "posterior",
    "gumbel",
    "stochastic",
    "single",
    "uniform",
    "hashed",
    "fixed",
    "released",
)


def check_options(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse options that there are not.

    Args:
        given: their names.
        known: all that could have been given.

    Raises:
        ConfigError: with the nearest names.
    """
    names = sorted(known)
    for name in given:
        if name not in names:
            raise unknown("option", name, names)


def check_routing(name: str | None) -> None:
    """Refuse a routing that there is not; None: it was not said.

    Raises:
        ConfigError: with the nearest names.
    """
    if name is not None and name not in ROUTINGS:
        raise unknown("routing", name, ROUTINGS)
