"""Methods with their options by short names, as the data file lists them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from peft_smop.errors import ConfigError, unknown
from peft_smop.names.fields import check_values
from peft_smop.names.methods import DESCRIBED
from peft_smop.names.options import (
    check_options,
    check_routing,
    method_options,
    training_options,
)
from peft_smop.plain_yaml import PlainYamlError, read_yaml

FILE = Path(__file__).with_name("variants.yaml")
SHORT = {"k": "num_prompts", "l": "num_virtual_tokens", "r": "rank", "d": "bottleneck_size"}
SHORT |= {"lr": "learning_rate"}


@dataclass(frozen=True)
class Listed:
    """A short name's method with its options, and the training options that go with it."""

    name: str
    method: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    paper: str = "ours"
    """The table of the paper in which it stands, or "ours"."""


@cache
def listed() -> dict[str, Listed]:
    """The entries of the data file, and every method with its defaults."""
    entries = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    found = {
        name: Listed(name, entry["method"], entry.get("training", {}), str(entry["paper"]))
        for name, entry in entries.items()
    }
    return found | {name: Listed(name, {"name": name}) for name in DESCRIBED if name not in found}


def options_in(text: str) -> dict[str, Any]:
    """The options that a text says beside a method's name, by their whole names.

    Args:
        text: such as "lora-8", "smop:k=10:l=1" or "prompt-tuning-20:lr=0.3".

    Raises:
        ConfigError: the name or an option is unknown, or a value cannot be.
    """
    name, *options = text.split(":")
    if name not in listed():
        raise unknown("method", name, listed())
    known = [key for key in (*method_options(), *training_options()) if key != "name"]
    found: dict[str, Any] = {}
    for option in options:
        key, equals, said = option.partition("=")
        if not equals or not said:
            raise ConfigError(f"{text!r}: {option!r} should be KEY=VALUE")
        key, value = SHORT.get(key, key), typed(said)
        if found.get(key, value) != value:
            raise ConfigError(f"{text!r}: {key} is given twice, as {found[key]} and {value}")
        found[key] = value
    try:
        check_options(found, [*known, *SHORT])
        check_values(found)
        check_routing(found.get("routing"))
    except ConfigError as error:
        raise ConfigError(f"{text!r}: {error}") from error
    return found


def typed(value: str) -> Any:
    """A value of its own type: 3, 0.5, true, or the text itself."""
    try:
        found = read_yaml(value)
    except PlainYamlError:
        return value
    return value if isinstance(found, dict | list) else found
