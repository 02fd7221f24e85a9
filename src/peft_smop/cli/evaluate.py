"""`smop evaluate`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from peft_smop.cli.show import score_lines
from peft_smop.errors import RunError
from peft_smop.lab import RunDirectory, load_trained, score_as_dict, write_json
from peft_smop.methods import prompts_to_choose
from peft_smop.scoring import evaluate as evaluate_examples
from peft_smop.scoring import majority_label
from peft_smop.tasks import load_task


class Part(StrEnum):
    """A part of the split."""

    train = "train"
    validation = "validation"
    test = "test"


def evaluate(
    path: Annotated[Path, typer.Argument(help="A run's directory, or a saved adapter's.")],
    part: Annotated[Part, typer.Option(help="Which examples.")] = Part.test,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="The task, for an adapter without its run.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Directory of the task's files; the run's by default.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The backbone; the adapter's by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the split; the run's by default.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the score here, as JSON.")
    ] = None,
) -> None:
    """Score a trained adapter on a part of its task's examples.

    Example: [bold]smop evaluate runs/cb-t5-base-smop-s0 --part validation[/bold]
    """
    if output is not None and output.is_dir():
        raise RunError(f"{output} is a directory; expected a file for the score")
    trained = load_trained(path, task=task, model=model, data=data)
    spec = trained.spec
    today, split = load_task(
        spec.task, data=spec.data, preset=spec.preset, seed=spec.seed if seed is None else seed
    )
    if today != trained.task:
        raise RunError(
            f"the task {spec.task!r} is not the one that was trained: its template, labels or"
            " verbalizers have changed since"
        )
    console = Console(highlight=False)
    recorded = RunDirectory(path).split
    if recorded.is_file():
        before = json.loads(recorded.read_text(encoding="utf-8"))["parts"][part.value]["sha256"]
        if split.record()["parts"][part.value]["sha256"] != before:
            console.print(
                f"warning: these {part.value} examples are not the run's own; some may have been"
                " trained on",
                style="yellow",
                soft_wrap=True,
            )
    found = evaluate_examples(
        trained.model,
        trained.formulation,
        getattr(split, part.value),
        majority_label=majority_label([example.label for example in split.train]),
        num_prompts=prompts_to_choose(trained.model),
    )
    score = score_as_dict(found)
    for line in score_lines(score, part=part.value):
        console.print(line, soft_wrap=True, markup=False)
    for alarm in found.alarms:
        console.print(f"warning: {alarm}", style="yellow", markup=False, soft_wrap=True)
    if trained.formulation.truncated:
        console.print(
            f"{trained.formulation.truncated} inputs are longer than"
            f" {trained.formulation.max_length} tokens and were cut"
        )
    if output:
        write_json(output, score)
