"""Methods with their options by short names, as the data file lists them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from peft_smop.errors import unknown
from peft_smop.names.methods import DESCRIBED
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


def check_names(texts: Iterable[str]) -> None:
    """Refuse texts that begin with no known name, before anything that could read the rest.

    Args:
        texts: such as "lora-8" or "smop:k=10:l=1".

    Raises:
        ConfigError: with the nearest names.
    """
    for text in texts:
        name = text.split(":")[0]
        if name not in listed():
            raise unknown("method", name, listed())


def typed(value: str) -> Any:
    """A value of its own type: 3, 0.5, true, or the text itself."""
    try:
        found = read_yaml(value)
    except PlainYamlError:
        return value
    return value if isinstance(found, dict | list) else found
