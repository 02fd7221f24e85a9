"""`smop methods`."""

from __future__ import annotations

import yaml
from rich.console import Console
from rich.table import Table

from peft_smop.lab import variants
from peft_smop.methods import METHODS


def methods() -> None:
    """List the methods and their short names.

    Example: [bold]smop methods[/bold]
    """
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "options", "paper", "learning rates"):
        table.add_column(column, no_wrap=True)
    for name, one in variants().items():
        given = {**one.method, **one.training}
        method = given.pop("name")
        words = " ".join(
            f"{key}={yaml.safe_dump(value).split()[0]}" for key, value in given.items()
        )
        rates = ", ".join(f"{rate:g}" for rate in one.learning_rates)
        paper = f"Table {one.paper}" if one.paper.isdigit() else ""
        table.add_row(name, words if name == method else f"{method} {words}", paper, rates)
    if not console.is_terminal:
        console.width = 140
    console.print(table)
    console.print()
    for name, method in METHODS.items():
        console.print(f"{name:>14}  {method.description}", markup=False, soft_wrap=True)
    console.print(
        "\nOptions follow a name after colons: smop:k=8:l=3, prompt-tuning-20:lr=0.3, lora:r=16.",
        soft_wrap=True,
        markup=False,
    )
