"""`smop tasks`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from peft_smop.cli.show import fits
from peft_smop.cli.terminal import Console
from peft_smop.errors import unknown
from peft_smop.tasks import CATALOGUE, PRESETS


def tasks(
    name: Annotated[str | None, typer.Argument(help="One task, in full.")] = None,
) -> None:
    """List the tasks, or show one with its template and labels.

    Example: [bold]smop tasks cb[/bold]
    """
    console = Console(highlight=False)
    if name is not None:
        if name not in CATALOGUE:
            raise unknown("task", name, CATALOGUE)
        entry = CATALOGUE[name]
        pairs = zip(entry.task.labels, entry.task.verbalizers, strict=True)
        rows = {
            "task": name,
            "about": entry.task.description,
            "template": entry.task.template,
            "labels": ", ".join(f"{label} → {word}" for label, word in pairs),
            "metric": entry.task.metric,
            "data": entry.source,
            "splits": "; ".join(f"{p}: {PRESETS[p].description}" for p in entry.presets),
        }
        for key, value in rows.items():
            console.print(fits(f"{key:>9}  ", value))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("task", "about", "labels", "metric"):
        table.add_column(column)
    for key, entry in CATALOGUE.items():
        task = entry.task
        table.add_row(key, task.description, ", ".join(task.verbalizers), task.metric)
    console.print(table)
    console.print("Where the data come from: smop tasks NAME.")
    console.print("Your own: a YAML with name, template, labels and data; see docs/tasks.md.")
