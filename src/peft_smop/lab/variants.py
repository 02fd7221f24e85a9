"""Methods with their options, by short names: `lora-8`, `smop-top2`, `smop:k=10:l=1`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from peft import PeftConfig

from peft_smop.errors import ConfigError
from peft_smop.lab.spec import RunSpec
from peft_smop.methods import MethodSpec, Setting, configure, method_of
from peft_smop.names import SHORT, Listed, Rate, listed, options_in
from peft_smop.tuner import SMoPConfig

OF_A_ROUTER = ("router_learning_rate", "revive_dead_prompts")
OF_PROMPTS = (
    "parameterisation",
    "hidden_size",
    "rank",
    "init",
    "init_std",
    "init_text",
    "init_adapter",
)


@dataclass(frozen=True)
class Variant(Listed):
    """A method with its options, and the training options that go with it."""

    @property
    def spec(self) -> MethodSpec:
        """The method's specification."""
        return MethodSpec.model_validate(self.method)

    def rates(self, recipe: str) -> tuple[Rate, ...]:
        """The rates to search, the recipe's for this kind of method, or the only one given."""
        given = self.training.get("learning_rate")
        own = self.training.get("recipe", recipe)
        return method_of(self.spec).rates(own) if given is None else (given,)


@cache
def variants() -> dict[str, Variant]:
    """The variants of the data file, and every method with its defaults."""
    return {
        name: Variant(name, one.method, one.training, one.paper) for name, one in listed().items()
    }


def variant(text: str) -> Variant:
    """Read a variant: a name, and options of the method or of its training after colons.

    Args:
        text: such as "smop", "lora-8", "smop:k=10:l=1" or "prompt-tuning-20:lr=0.3".

    Raises:
        ConfigError: the name or an option is unknown, or a value cannot be.
    """
    said = options_in(text)
    found = variants()[text.split(":")[0]]
    method, training = dict(found.method), dict(found.training)
    for key, value in said.items():
        (method if key in MethodSpec.model_fields else training)[key] = value
    RunSpec.of({"task": "any", "method": method, "training": training}, place=repr(text))
    return Variant(text, method, training, found.paper)


def name_of(spec: RunSpec, named: Variant) -> str:
    """A run's method as `variant` would read it: the listed name, and what is other than there.

    Args:
        spec: the run.
        named: the variant from which it was made; of the training options those are named that it
            names, with the values that the run has.
    """
    given = {"name": spec.method.name, **spec.method.given()}
    base = named.name.split(":")[0]
    listed = variants()
    same = [name for name, one in listed.items() if one.method == given]
    if same:
        base = base if base in same else same[0]
    elif listed[base].method.items() - given.items():
        base = spec.method.name  # something of the listed method was changed
    training = {
        key: getattr(spec.training, key)
        for key in named.training
        if getattr(spec.training, key) != listed[base].training.get(key)
    }
    other = {k: v for k, v in given.items() if listed[base].method.get(k) != v} | training
    short = {long: key for key, long in SHORT.items()}
    return ":".join([base, *(f"{short.get(key, key)}={_said(v)}" for key, v in other.items())])


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def check_method(one: Variant) -> PeftConfig | None:
    """Configure a variant without a model, so that contradictions show before anything runs.

    Raises:
        ConfigError: its options contradict each other.
    """
    return configure(one.spec, Setting(None, ("yes", "no"), "", 0, steps=1))


def check_methods(chosen: Sequence[Variant]) -> None:
    """Check variants that are to stand side by side.

    Raises:
        ConfigError: one is named twice, or contradicts itself.
    """
    names = [one.name for one in chosen]
    for one in chosen:
        if names.count(one.name) > 1:
            raise ConfigError(f"method {one.name!r} is named twice; name every method once")
        check_method(one)


def matched_controls(chosen: Sequence[Variant]) -> list[Variant]:
    """For every mixture among the variants what it must be held against.

    Prompt tuning as long as ONE of its prompts (the same cost), prompt tuning as long as ALL of
    them (the same number of prompt parameters), and the same prompts mixed alike without a router;
    each with the mixture's training options, as far as they concern it.
    """
    present = [(check_method(one), one.training) for one in chosen]
    added: list[Variant] = []
    for one in chosen:
        config = check_method(one)
        if not isinstance(config, SMoPConfig) or config.routing in ("uniform", "single"):
            continue
        k, length = config.num_prompts or 1, config.num_virtual_tokens
        training = {key: v for key, v in one.training.items() if key not in OF_A_ROUTER}
        kept = {key: v for key, v in one.method.items() if key in OF_PROMPTS}
        rest = "".join(f":{key}={v}" for key, v in training.items())
        more = "".join(f":{key}={v}" for key, v in kept.items())
        uniform = {
            "name": "smop",
            "routing": "uniform",
            "num_prompts": k,
            "num_virtual_tokens": length,
        }
        for control in (
            Variant(f"prompt-tuning:l={length}{rest}", _plain(length), _without_network(training)),
            Variant(
                f"prompt-tuning:l={k * length}{rest}",
                _plain(k * length),
                _without_network(training),
            ),
            Variant(f"smop:routing=uniform:k={k}:l={length}{more}{rest}", uniform | kept, training),
        ):
            key = (check_method(control), control.training)
            if key not in present:
                present.append(key)
                added.append(control)
    return added


def _plain(length: int) -> dict[str, Any]:
    return {"name": "prompt-tuning", "num_virtual_tokens": length}


def _without_network(training: dict[str, Any]) -> dict[str, Any]:
    return {key: v for key, v in training.items() if key != "network_learning_rate"}
