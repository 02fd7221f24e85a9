"""`smop methods`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import typer
import yaml
from rich.table import Table

from peft_smop.cli.show import fits
from peft_smop.cli.terminal import Console
from peft_smop.names import (
    DESCRIBED,
    RECIPES,
    SHORT,
    Listed,
    TrainingFields,
    fields_of,
    listed,
    options_in,
)

HOW_OPTIONS_FOLLOW = (
    "Options follow a name after colons: smop:k=8:l=3, prompt-tuning-20:lr=0.3, lora:r=16."
)


def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method, with its options and what --set takes.")
    ] = None,
) -> None:
    """List the methods and their short names, or show one with its options.

    Example: [bold]smop methods smop-posterior[/bold]
    """
    console = Console(highlight=False)
    if name is not None:
        options_in(name)
        _print_one(console, listed()[name.split(":")[0]])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("method and options")
    table.add_column("Table", no_wrap=True)
    for key, one in listed().items():
        table.add_row(key, _said(one), one.paper if one.paper.isdigit() else "")
    console.print(table)
    console.print("Table: the paper's in which a row stands; the others are ours.")
    console.print()
    for key, method in DESCRIBED.items():
        console.print(fits(f"{key:>14}  ", method.description))
    console.print(f"\n{HOW_OPTIONS_FOLLOW} More: smop methods NAME.", markup=False)


def _said(one: Listed) -> str:
    """A short name's method and options, in words that `--set` would take."""
    given = {**one.method, **one.training}
    method = given.pop("name")
    words = [f"{key}={yaml.safe_dump(value).split()[0]}" for key, value in given.items()]
    return " ".join(words if one.name == method else [method, *words])


def _print_one(console: Console, one: Listed) -> None:
    """A method's own options and those of its training, with what each takes."""
    from peft_smop.methods import METHODS, OPTIONS
    from peft_smop.tuner import STRATEGIES

    method = METHODS[one.method["name"]]
    short = {long: letter for letter, long in SHORT.items()}
    console.print(f"[bold]{one.name}[/bold]  {method.description}")
    if one.name != one.method["name"] or one.training:
        console.print(f"stands for: {_said(one)}", markup=False)
    for recipe in RECIPES:
        rates = ", ".join(map(str, method.rates(recipe)))
        console.print(f"learning rates, recipe {recipe}: {rates} (the first is the default)")
        dropout = "on" if method.drops(recipe) else "off"
        console.print(f"backbone's dropout, recipe {recipe}: {dropout}")
    own = [field for name, field in OPTIONS.items() if name in method.options]
    for title, fields in (
        ("Options of the method", own),
        ("Options of its training", list(fields_of(TrainingFields))),
    ):
        console.print(f"\n[bold]{title}[/bold] (--set KEY=VALUE)")
        if not fields:
            console.print("  none")
        for field in fields:
            letter = f" ({short[field.name]})" if field.name in short else ""
            default = "" if field.default is None else str(field.default)
            what = "; ".join(part for part in (_takes(field.kind), field.help, default) if part)
            console.print(fits(f"  {field.name}{letter}: ", what))
    if "routing" in method.options:
        console.print("\n[bold]Ways of routing[/bold] (--routing)")
        for key, kind in STRATEGIES.items():
            about = (kind.__doc__ or "").strip().split("\n\n")[0]
            console.print(fits(f"  {key}: ", " ".join(about.split())))
    console.print()
    console.print(HOW_OPTIONS_FOLLOW, markup=False)


_WORDS: Mapping[Any, str] = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
}


def _takes(annotation: Any) -> str:
    """What an option takes, in words."""
    arguments = [one for one in get_args(annotation) if one is not type(None)]
    if not arguments:
        return _WORDS.get(annotation, str(annotation))
    if get_origin(annotation) is Union or all(isinstance(one, type) for one in arguments):
        return " or ".join(dict.fromkeys(_takes(one) for one in arguments))
    return ", ".join(str(one) if not get_args(one) else _takes(one) for one in arguments)
