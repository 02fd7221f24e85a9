"""`smop tasks`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from peft_smop.cli.show import fits
from peft_smop.cli.terminal import Console
from peft_smop.errors import shortened
from peft_smop.tasks import CATALOGUE, PARTS, PRESETS, Task, check_task, is_own, load_task


def tasks(
    name: Annotated[
        str | None, typer.Argument(help="One task, in full; or your own task's YAML.")
    ] = None,
) -> None:
    """List the tasks, or show one with its template and labels.

    Of your own also its examples are read and counted.

    Example: [bold]smop tasks cb[/bold]
    """
    console = Console(highlight=False)
    if name is not None:
        check_task(name)
        for key, value in (_own(name) if is_own(name) else _of_catalogue(name)).items():
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


def _of_catalogue(name: str) -> dict[str, str]:
    entry = CATALOGUE[name]
    return {
        "task": name,
        **_definition(entry.task),
        "data": entry.source,
        "splits": "; ".join(f"{p}: {PRESETS[p].description}" for p in entry.presets),
    }


def _own(path: str) -> dict[str, str]:
    task, split = load_task(path)
    counts = {part: len(getattr(split, part)) for part in PARTS}
    return {
        "task": task.name,
        **_definition(task),
        "data": ", ".join(dict.fromkeys(split.sources.values())),
        "splits": ", ".join(f"{part}: {count}" for part, count in counts.items()),
        "the first": shortened(split.train[0].text),
    }


def _definition(task: Task) -> dict[str, str]:
    pairs = zip(task.labels, task.verbalizers, strict=True)
    return {
        "about": task.description,
        "template": task.template,
        "labels": ", ".join(f"{label} → {word}" for label, word in pairs),
        "metric": task.metric,
    }
