"""Methods with their options, by short names: `lora-8`, `smop-top2`, `smop:k=10:l=1`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from peft_smop.errors import ConfigError, unknown
from peft_smop.methods import METHODS, MethodSpec, method_of, virtual_tokens
from peft_smop.training import TrainingOptions

FILE = Path(__file__).with_name("variants.yaml")
SHORT = {"k": "num_prompts", "l": "num_virtual_tokens", "r": "rank", "d": "bottleneck_size"}
SHORT |= {"lr": "learning_rate"}


@dataclass(frozen=True)
class Variant:
    """A method with its options, and the training options that go with it."""

    name: str
    method: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    paper: str = "ours"
    """The table of the paper in which it stands, or "ours"."""

    @property
    def spec(self) -> MethodSpec:
        """The method's specification."""
        return MethodSpec.model_validate(self.method)

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The rates to search, the paper's for this kind of method, or the only one given."""
        given = self.training.get("learning_rate")
        return method_of(self.spec).learning_rates if given is None else (float(given),)


@cache
def variants() -> dict[str, Variant]:
    """The variants of the data file, and every method with its defaults."""
    listed = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    found = {
        name: Variant(name, entry["method"], entry.get("training", {}), str(entry["paper"]))
        for name, entry in listed.items()
    }
    return found | {name: Variant(name, {"name": name}) for name in METHODS if name not in found}


def variant(text: str) -> Variant:
    """Read a variant: a name, and options of the method or of its training after colons.

    Args:
        text: such as "smop", "lora-8", "smop:k=10:l=1" or "prompt-tuning-20:lr=0.3".

    Raises:
        ConfigError: the name or an option is unknown, or an option has no value.
    """
    name, *options = text.split(":")
    if name not in variants():
        raise unknown("method", name, variants())
    found = variants()[name]
    method, training = dict(found.method), dict(found.training)
    for option in options:
        key, equals, value = option.partition("=")
        key = SHORT.get(key, key)
        if not equals or not value:
            raise ConfigError(f"{text!r}: {option!r} should be KEY=VALUE")
        if key in MethodSpec.model_fields and key != "name":
            method[key] = yaml.safe_load(value)
        elif key in TrainingOptions.model_fields:
            training[key] = yaml.safe_load(value)
        else:
            known = [*MethodSpec.model_fields, *TrainingOptions.model_fields, *SHORT]
            raise unknown("option", key, known)
    return Variant(text, method, training, found.paper)


def matched_controls(chosen: Sequence[Variant]) -> list[Variant]:
    """For every mixture among the variants what it must be held against.

    Prompt tuning as long as ONE of its prompts (the same cost), prompt tuning as long as ALL of
    them (the same number of prompt parameters), and the same prompts mixed alike without a router.
    """
    wanted: dict[str, Variant] = {}
    for one in chosen:
        if one.spec.name != "smop" or one.spec.routing == "uniform":
            continue
        k, l = one.spec.num_prompts or 4, virtual_tokens(one.spec)  # noqa: E741
        for text in (
            f"prompt-tuning:l={l}",
            f"prompt-tuning:l={k * l}",
            f"smop:routing=uniform:k={k}:l={l}",
        ):
            wanted.setdefault(text, variant(text))
    present = [one.spec for one in chosen]
    return [control for control in wanted.values() if control.spec not in present]
