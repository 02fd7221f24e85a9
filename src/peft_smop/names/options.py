"""The names of options, for answers to typing errors before torch is imported.

Those of routing strategies are read from the source of the classes whose fields they are, as
importing those takes torch.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from peft_smop.errors import unknown
from peft_smop.names.fields import MethodFields, TrainingFields, fields_of

PACKAGE = Path(__file__).parents[1]
STRATEGIES = ("tuner/strategies.py", "tuner/posterior.py", "tuner/losses.py")
"""Where strategies and penalties declare their options, by `option(default, help)`."""


@cache
def training_options() -> tuple[str, ...]:
    """Those of `TrainingOptions`."""
    return tuple(field.name for field in fields_of(TrainingFields))


@cache
def method_options() -> tuple[str, ...]:
    """Those of `MethodSpec`, which are a method's own and those of every routing strategy."""
    own = [field.name for field in fields_of(MethodFields)]
    own += [
        name
        for file in STRATEGIES
        for name, default in _fields(file)
        if isinstance(default, ast.Call) and ast.unparse(default.func) == "option"
    ]
    return tuple(dict.fromkeys(name for name in own if name != "annealing_steps"))


@cache
def routings() -> tuple[str, ...]:
    """What `RoutingName` lists."""
    (named,) = (
        node.value
        for node in _parsed(STRATEGIES[0]).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RoutingName"
    )
    return tuple(str(part.value) for part in ast.walk(named) if isinstance(part, ast.Constant))


def _parsed(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def _fields(file: str) -> Iterator[tuple[str, ast.expr | None]]:
    """The annotated fields of a file's classes, with their defaults."""
    for node in _parsed(file).body:
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.target.id, field.value


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
    if name is not None and name not in routings():
        raise unknown("routing", name, routings())
