"""`smop train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peft_smop.cli.engines import ReportTo, reports_in
from peft_smop.cli.named import default_name
from peft_smop.cli.options import (
    METHOD,
    RUN,
    TRAINING,
    Data,
    EvalSteps,
    MaxSteps,
    Model,
    Preset,
    RecipeOption,
    TaskOption,
    TrainExamples,
)
from peft_smop.cli.show import print_result, print_split, typed_options
from peft_smop.cli.terminal import Console
from peft_smop.errors import ConfigError
from peft_smop.names import (
    DEFAULT_MODEL,
    check_names,
    check_options,
    check_routing,
    method_options,
    training_options,
    typed,
)
from peft_smop.tasks import check_task


def train(
    task: TaskOption,
    data: Data = None,
    preset: Preset = None,
    train_examples: TrainExamples = None,
    model: Model = DEFAULT_MODEL,
    method: Annotated[
        str, typer.Option(help="A name of `smop methods`, such as lora-8.", rich_help_panel=METHOD)
    ] = "smop",
    num_prompts: Annotated[
        int | None,
        typer.Option(
            "--num-prompts", "-k", help="Soft prompts; 4 by default.", rich_help_panel=METHOD
        ),
    ] = None,
    num_virtual_tokens: Annotated[
        int | None,
        typer.Option(
            "--num-virtual-tokens",
            "-l",
            help="Length of one soft prompt; 5 by default.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    routing: Annotated[
        str | None,
        typer.Option(
            help="How SMoP routes; `smop methods smop` lists the ways.", rich_help_panel=METHOD
        ),
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(
            help="Of a prompt: before the text, the default, or after it (causal LMs).",
            rich_help_panel=METHOD,
        ),
    ] = None,
    perturbation: Annotated[
        bool | None,
        typer.Option(
            "--perturbation/--no-perturbation",
            help="Noise on the router in training.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Prompts start from: vocabulary, normal, labels, text, adapter.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    init_text: Annotated[
        str | None, typer.Option(help="The text, for --init text.", rich_help_panel=METHOD)
    ] = None,
    init_adapter: Annotated[
        str | None,
        typer.Option(
            help="A saved adapter's directory, for --init adapter.", rich_help_panel=METHOD
        ),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Most passes over the training examples; 50.", rich_help_panel=TRAINING),
    ] = None,
    max_steps: MaxSteps = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples in a step; 32.", rich_help_panel=TRAINING)
    ] = None,
    recipe: RecipeOption = None,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            "--learning-rate",
            "--lr",
            metavar="RATE",
            help="A number, or as 0.4x, the recipe's for prompts, spreads of the embeddings.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(help="adafactor, the default, or adamw_torch.", rich_help_panel=TRAINING),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="1e-5 by default.", rich_help_panel=TRAINING)
    ] = None,
    warmup_ratio: Annotated[
        float | None,
        typer.Option(help="Share of steps to warm up; 0.06.", rich_help_panel=TRAINING),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="linear, the default, cosine or constant_with_warmup.", rich_help_panel=TRAINING
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing", help="Less memory, more time.", rich_help_panel=TRAINING
        ),
    ] = False,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many evaluations without improvement; 10.", rich_help_panel=TRAINING
        ),
    ] = None,
    eval_steps: EvalSteps = None,
    max_length: Annotated[
        int | None, typer.Option(help="Longest input in tokens; 512.", rich_help_panel=TRAINING)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of the backbone: auto, the default, fp32 or bf16.", rich_help_panel=TRAINING
        ),
    ] = None,
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
    check_names([method])
    check_routing(routing)
    settings = typed_options(options or [])
    check_options(settings, method_options() + training_options())
    check_routing(settings.get("routing"))
    from peft_smop.lab import RunSpec, name_of, run, variant
    from peft_smop.methods import MethodSpec
    from peft_smop.results import RunDirectory
    from peft_smop.training import processes

    console = Console(stderr=True, highlight=False)
    chosen = variant(method)
    asked = {
        "num_prompts": num_prompts,
        "num_virtual_tokens": num_virtual_tokens,
        "routing": routing,
        "position": position,
        "perturbation": perturbation,
        "init": init,
        "init_text": init_text,
        "init_adapter": init_adapter,
    }
    trained = {
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "recipe": recipe,
        "learning_rate": None if learning_rate is None else typed(learning_rate),
        "optimizer": optimizer,
        "weight_decay": weight_decay,
        "warmup_ratio": warmup_ratio,
        "schedule": schedule,
        "gradient_checkpointing": gradient_checkpointing or None,
        "patience": patience,
        "eval_steps": eval_steps,
        "max_length": max_length,
        "precision": precision,
    }
    of_method = {key: value for key, value in asked.items() if value is not None}
    of_training = {key: value for key, value in trained.items() if value is not None}
    for key, value in settings.items():
        target = of_method if key in MethodSpec.model_fields else of_training
        if target.get(key, value) != value:
            raise ConfigError(
                f"--set {key}={value} contradicts --{key.replace('_', '-')} {target[key]};"
                " give one of them"
            )
        target[key] = value
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
            certified=True,
        )
    except KeyboardInterrupt:
        console.print(f"stopped; {where} is kept: the same command with --resume goes on with it")
        raise typer.Exit(130) from None
    told = Console(highlight=False)
    if processes.is_first():
        print_result(told, result, where)
        print_split(told, RunDirectory(where).read_split())
