"""Options that several commands have: in a group, which a command is handed as a whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer

from peft_smop.cli.options import METHOD, TRAINING
from peft_smop.errors import ConfigError
from peft_smop.names import (
    SHORT,
    MethodFields,
    OptionField,
    Rate,
    TrainingFields,
    check_options,
    check_values,
    fields_of,
    typed,
)


@dataclass(frozen=True)
class Group:
    """Options, and what a command is handed of them."""

    parameters: Mapping[str, Parameter]
    made: Callable[..., Any]
    """From the options' values by name."""


def with_groups(**groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of groups beside its own; it is handed each group by its name."""

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        every: dict[str, Parameter] = {}
        for name, one in parameters_of(command).items():
            every.update(groups[name].parameters if name in groups else {name: one})

        @wraps(command)
        def called(**given: Any) -> None:
            made = {
                name: group.made(**{key: given.pop(key) for key in group.parameters})
                for name, group in groups.items()
            }
            command(**given, **made)

        keywords = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in every.values()]
        vars(called)["__signature__"] = Signature(keywords)
        called.__annotations__ = {one.name: one.annotation for one in keywords}
        return called

    return decorated


def parameters_of(function: Callable[..., Any]) -> dict[str, Parameter]:
    """By name, with annotations that are no strings."""
    hints = get_type_hints(function, include_extras=True)
    found = signature(function).parameters
    return {name: one.replace(annotation=hints[name]) for name, one in found.items()}


def training_group(*, without: Collection[str] = (), defaults: bool = True) -> Group:
    """An option for each of `TrainingFields`; what was said of them, by name.

    Args:
        without: fields that have none.
        defaults: whether help tells them; not where a file may say other ones.
    """
    return _of_fields(TrainingFields, TRAINING, without, defaults)


def method_group() -> Group:
    """An option for each of `MethodFields` but the name; what was said of them, by name."""
    return _of_fields(MethodFields, METHOD, ("name",), True)


def _of_fields(kind: type, panel: str, without: Collection[str], defaults: bool) -> Group:
    shown = {field.name: field for field in fields_of(kind) if field.name not in without}
    options: dict[str, OptionField] = {}
    for name, field in shown.items():
        options[name] = field
        if field.kind == bool | None:  # columns for both ways would leave no room for names
            about = f"without {field.help.split(';')[0]}"
            options[f"no_{name}"] = OptionField(f"no_{name}", bool, False, about)

    def said(**given: Any) -> dict[str, Any]:
        for refused in options.keys() - shown.keys():
            name = refused.removeprefix("no_")
            if given.pop(refused):
                if given[name]:
                    raise ConfigError(f"--{name} contradicts --no-{name}; give one of them")
                given[name] = False
        return {
            name: _value(shown[name], value) for name, value in given.items() if value is not None
        }

    return Group({name: _parameter(one, panel, defaults) for name, one in options.items()}, said)


def _value(field: OptionField, given: Any) -> Any:
    if field.kind is bool:  # columns for both ways would leave no room for names
        return not field.default
    value = typed(given) if field.kind == Rate | None else given
    return given if value is None else value


def _parameter(field: OptionField, panel: str, defaults: bool) -> Parameter:
    """A command's option for a field, unsaid by default."""
    dashed = field.name.replace("_", "-")
    # words are checked where all options are, which says what is wrong in one sentence
    takes: Any = str if field.choices or field.kind == Rate | None else field.kind
    option = typer.Option(
        f"--no-{dashed}" if field.default is True else f"--{dashed}",
        *(f"-{s}" if len(s) == 1 else f"--{s}" for s, long in SHORT.items() if long == field.name),
        help=_help(field, defaults),
        metavar=_metavar(field),
        rich_help_panel=panel,
    )
    annotation = Annotated[takes | None, option]
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(field: OptionField, defaults: bool) -> str:
    """What it is, what it takes where that is one of a few words, and what it is if unsaid."""
    said = ": ".join([field.help, *([", ".join(field.choices)] if field.choices else [])])
    if field.kind is bool and field.default:
        said = f"without {said}"
    if said[1] != ",":  # k and l are written small
        said = said[0].upper() + said[1:]
    shown = defaults and field.default is not None and field.kind is not bool
    return f"{said}. [dim]\\[default: {field.default}][/dim]" if shown else f"{said}."


def _metavar(field: OptionField) -> str | None:
    """Short where what typer would write leaves no room for the option's name."""
    if field.kind == Rate | None:
        return "RATE"
    return "NAME" if field.choices else None


def joined(
    said: Mapping[str, Any], options: Sequence[str] | None, known: Iterable[str]
) -> dict[str, Any]:
    """What was said by options of their own, and by --set.

    Args:
        said: by name.
        options: what --set was given, each KEY=VALUE.
        known: the keys that it takes.

    Raises:
        ConfigError: one is unknown, said twice with two values, or has a value that cannot be.
    """
    settings = _typed(options or ())
    check_options(settings, known)
    for key, value in settings.items():
        if said.get(key, value) != value:
            dashed, other = key.replace("_", "-"), said[key]
            option = f"--{dashed} {other}"
            if isinstance(other, bool):
                option = f"--{dashed}" if other else f"--no-{dashed}"
            value = str(value).lower() if isinstance(value, bool) else value
            raise ConfigError(f"--set {key}={value} contradicts {option}; give one of them")
    found = {**said, **settings}
    check_values(found)  # here, before anything heavy is imported
    return found


def _typed(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE options with values of their own type: 3, 0.5, true, text.

    Raises:
        ConfigError: there is no value.
    """
    found: dict[str, Any] = {}
    for option in given:
        key, equals, value = option.partition("=")
        if not equals or not key or not value:
            raise ConfigError(f"--set {option}: expected KEY=VALUE")
        if found.get(key, typed(value)) != typed(value):
            raise ConfigError(f"--set {key} is given twice, as {found[key]} and {value}; give one")
        found[key] = typed(value)
    return found
