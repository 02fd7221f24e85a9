"""`smop train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peft_smop.cli.engines import ReportTo, reports_in
from peft_smop.cli.groups import joined, method_group, training_group, with_groups
from peft_smop.cli.named import default_name
from peft_smop.cli.options import (
    METHOD,
    RUN,
    TRAINING,
    Data,
    Model,
    Preset,
    TaskOption,
    TrainExamples,
)
from peft_smop.cli.show import print_result, print_split
from peft_smop.cli.terminal import Console
from peft_smop.names import (
    DEFAULT_MODEL,
    check_routing,
    method_options,
    options_in,
    training_options,
)
from peft_smop.tasks import check_task


@with_groups(own=method_group(), training=training_group())
def train(
    *,
    task: TaskOption,
    data: Data = None,
    preset: Preset = None,
    train_examples: TrainExamples = None,
    model: Model = DEFAULT_MODEL,
    method: Annotated[
        str, typer.Option(help="A name of `smop methods`, such as lora-8.", rich_help_panel=METHOD)
    ] = "smop",
    own: dict[str, Any],
    no_perturbation: Annotated[
        bool,
        typer.Option(
            "--no-perturbation",
            help="Without noise on the router in training.",
            rich_help_panel=METHOD,
        ),
    ] = False,
    training: dict[str, Any],
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other option of the method or its training.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of split, start, order and noise.", rich_help_panel=RUN)
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The run's directory; runs/TASK-MODEL-METHOD-sSEED.",
            rich_help_panel=RUN,
        ),
    ] = None,
    report_to: ReportTo = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a stopped run.", rich_help_panel=RUN)
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Delete an earlier run in --output.", rich_help_panel=RUN),
    ] = False,
) -> None:
    """Train soft prompts on a task, choose by validation, test once, save the adapter.

    Example: [bold]smop train --task cb --data superglue --model t5-base --seed 1[/bold]

    Without a network: [bold]smop train --task medley --model embedded --epochs 20[/bold]
    """
    check_task(task)
    in_name = options_in(method)
    noise = {"perturbation": False} if no_perturbation else {}
    said = joined(own | noise | training, options, method_options() + training_options())
    check_routing(said.get("routing"))
    from peft_smop.lab import RunSpec, name_of, run, variant
    from peft_smop.methods import MethodSpec
    from peft_smop.results import RunDirectory
    from peft_smop.training import processes

    console = Console(stderr=True, highlight=False)
    chosen = variant(method)
    of_method = {key: value for key, value in said.items() if key in MethodSpec.model_fields}
    of_training = {key: value for key, value in said.items() if key not in of_method}
    for key in in_name.keys() & said.keys():
        named = {**chosen.method, **chosen.training}[key]
        if named != said[key]:
            console.print(
                f"note: {key} is {said[key]}, as its own option says, not {named} as in"
                f" --method {method}",
                markup=False,
                soft_wrap=True,
            )
    content: dict[str, Any] = {
        "task": task,
        "data": data,
        "preset": preset,
        "train_examples": train_examples,
        "model": model,
        "seed": seed,
        "method": {**chosen.method, **of_method},
        "training": {**chosen.training, **of_training},
    }
    spec = RunSpec.of(content)
    reports = reports_in(report_to)
    name = name_of(spec, chosen)
    where = output or Path("runs") / default_name(spec.task, spec.model, name, spec.seed)
    try:
        result = run(
            spec,
            where,
            resume=resume,
            overwrite=overwrite,
            report_to=reports,
            console=console,
            title=name_of(spec, chosen),
        )
    except KeyboardInterrupt:
        console.print(f"stopped; {where} is kept: the same command with --resume goes on with it")
        raise typer.Exit(130) from None
    told = Console(highlight=False)
    if processes.is_first():
        print_result(told, result, where)
        print_split(told, RunDirectory(where).read_split(), train_examples=train_examples)
