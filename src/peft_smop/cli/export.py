"""`smop export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peft_smop.cli.named import check_path
from peft_smop.cli.options import BackboneOfTrained, TaskOfAdapter, TrainedPath
from peft_smop.cli.terminal import Console
from peft_smop.names import FORMATS, check_format


def export(
    path: TrainedPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to; it must not exist, or be empty.")
    ],
    format: Annotated[
        str, typer.Option("--format", "-f", help="; ".join(f"{n}: {w}" for n, w in FORMATS.items()))
    ],
    task: TaskOfAdapter = None,
    model: BackboneOfTrained = None,
) -> None:
    """Write an adapter for another engine, which needs no PEFT.

    Example: [bold]smop export runs/tickets -o tickets-onnx --format onnx[/bold]
    """
    check_format(format)
    check_path(path)
    from peft_smop.results import check_vacant

    check_vacant(output)
    from peft_smop.export import export as write

    said = write(path, output, format=format, model=model, task=task)
    console = Console(highlight=False, soft_wrap=True)
    for written in sorted(output.iterdir()):
        console.print(f"{written}  {written.stat().st_size / 2**20:.1f} MiB", markup=False)
    if "checked" in said:
        difference = said["checked"]["largest_difference"]
        console.print(f"the largest difference from the model is {difference:.1g}", markup=False)
