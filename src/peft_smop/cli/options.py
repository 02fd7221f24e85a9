"""The arguments of the commands that take up something trained."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer


class Part(StrEnum):
    """A part of the split."""

    train = "train"
    validation = "validation"
    test = "test"


TrainedPath: TypeAlias = Annotated[
    Path, typer.Argument(help="A run's directory, or a saved adapter's.")
]
PartOption: TypeAlias = Annotated[Part, typer.Option(help="Which examples.")]
TaskOfAdapter: TypeAlias = Annotated[
    str | None, typer.Option("--task", "-t", help="The task, for an adapter without its run.")
]
DataOfTrained: TypeAlias = Annotated[
    Path | None, typer.Option(help="Directory of the task's files; the run's by default.")
]
BackboneOfTrained: TypeAlias = Annotated[
    str | None, typer.Option("--model", "-m", help="The backbone; the adapter's by default.")
]
