"""Options of a configuration: gathered from where they live, and checked before they are used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

from peft import PeftConfig
from pydantic import ConfigDict, TypeAdapter, ValidationError

from peft_smop.errors import ConfigError

LARGEST_SEED = 2**32 - 1
"""Noise hashes 32 bits of a seed; more would be dropped in silence."""


def options_of(kinds: Iterable[type]) -> dict[str, tuple[Any, str]]:
    """The fields of dataclasses: by name what each takes, None included, and what it is."""
    found: dict[str, tuple[Any, str]] = {}
    for kind in kinds:
        hints = get_type_hints(kind)
        for one in fields(kind):
            found.setdefault(one.name, (hints[one.name] | None, one.metadata.get("help", "")))
    return found


def with_options(name: str, options: dict[str, tuple[Any, str]]) -> Any:
    """A PEFT configuration that also has these options, unsaid by default."""
    listed = [
        (option, kind, field(default=None, metadata={"help": help}))
        for option, (kind, help) in options.items()
    ]
    return make_dataclass(name, listed, bases=(PeftConfig,))


def check_types(config: Any) -> None:
    """Check every field of a configuration that is not PEFT's own; they may come from JSON.

    Raises:
        ConfigError: with the field, its value and what was expected.
    """
    inherited = {one.name for one in fields(PeftConfig)}
    hints = get_type_hints(type(config))
    for one in fields(config):
        if one.name in inherited:
            continue
        value = getattr(config, one.name)
        try:
            TypeAdapter(hints[one.name], config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            wanted = " or ".join(dict.fromkeys(_wanted(e) for e in error.errors()))
            raise ConfigError(f"{one.name}={value!r} must be {wanted}") from error


_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "none_required": "None",
    "list_type": "a list",
}


def _wanted(error: Any) -> str:
    if error["type"] == "literal_error":
        return f"one of {error['ctx']['expected']}"
    return _WANTED.get(error["type"], error["msg"].removeprefix("Input should be ").lower())


def check_seed(seed: int) -> None:
    """Refuse a seed of which a part would be dropped.

    Raises:
        ConfigError: it is negative, or has more than 32 bits.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ConfigError(f"seed={seed} must be a whole number from 0 to {LARGEST_SEED}")
