"""The arguments that several commands have, and the groups in which help lists them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

DATA, METHOD, TRAINING, RUN = "Task and data", "Model and method", "Training", "The run"


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
Data: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Directory of the task's files; without it, the hub.", rich_help_panel=DATA),
]
Preset: TypeAlias = Annotated[
    str | None,
    typer.Option(help="How the data are split; see `smop tasks`.", rich_help_panel=DATA),
]
TrainExamples: TypeAlias = Annotated[
    int | None, typer.Option(help="Use only so many training examples.", rich_help_panel=DATA)
]
Model: TypeAlias = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="'embedded', a hub id, a directory or a GGUF file.",
        rich_help_panel=METHOD,
    ),
]
TaskOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--task",
        "-t",
        help="A task of `smop tasks`, or your own task's YAML.",
        rich_help_panel=DATA,
    ),
]
SetForAll: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A training option by its name, for all.",
        rich_help_panel=TRAINING,
    ),
]
