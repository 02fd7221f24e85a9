"""`smop evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peft_smop.cli.named import check_path
from peft_smop.cli.options import (
    BackboneOfTrained,
    DataOfTrained,
    Part,
    PartOption,
    TaskOfAdapter,
    TrainedPath,
)
from peft_smop.cli.show import score_lines, warn_of_others
from peft_smop.cli.terminal import Console, counting
from peft_smop.errors import RunError


def evaluate(
    path: TrainedPath,
    part: PartOption = Part.test,
    task: TaskOfAdapter = None,
    data: DataOfTrained = None,
    model: BackboneOfTrained = None,
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
    check_path(path)
    from peft_smop.lab import load_trained, part_of_task, score_of
    from peft_smop.results import write_json
    from peft_smop.scoring import evaluate as evaluate_examples
    from peft_smop.scoring import majority_label

    trained = load_trained(path, task=task, model=model, data=data)
    own = part_of_task(trained, part.value, seed=seed)
    console = Console(highlight=False)
    warn_of_others(console, own, part=part.value)
    with counting(console, f"answering {part.value}", len(own.examples)) as done:
        found = evaluate_examples(
            trained.model,
            trained.formulation,
            own.examples,
            majority_label=majority_label([example.label for example in own.train]),
            revives=trained.spec.training.revive_dead_prompts,
            on_batch=done,
        )
    score = score_of(found)
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
        write_json(output, score.model_dump(mode="json"))
