"""`smop train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from peft_smop.cli.show import print_result, typed_options
from peft_smop.lab import RunSpec, run, variant
from peft_smop.methods import DEFAULT_MODEL, MethodSpec
from peft_smop.tuner import STRATEGIES


def train(
    task: Annotated[
        str, typer.Option("--task", "-t", help="A task of `smop tasks`, or your own task's YAML.")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Directory of the task's files; without it, the hub.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="'embedded', a hub id, a directory or a GGUF file.")
    ] = DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="A name of `smop methods`, such as lora-8.")] = "smop",
    num_prompts: Annotated[
        int | None, typer.Option("--num-prompts", "-k", help="Soft prompts; 4 by default.")
    ] = None,
    num_virtual_tokens: Annotated[
        int | None,
        typer.Option("--num-virtual-tokens", "-l", help="Length of one soft prompt; 5 by default."),
    ] = None,
    routing: Annotated[
        str | None, typer.Option(help=f"How SMoP routes: {', '.join(STRATEGIES)}.")
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(help="Of a prompt: before the text, the default, or after it (causal LMs)."),
    ] = None,
    perturbation: Annotated[
        bool | None,
        typer.Option("--perturbation/--no-perturbation", help="Noise on the router in training."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Prompts start from: vocabulary, normal, labels, text, adapter."),
    ] = None,
    init_text: Annotated[str | None, typer.Option(help="The text, for --init text.")] = None,
    init_adapter: Annotated[
        str | None, typer.Option(help="A saved adapter's directory, for --init adapter.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Most passes over the training examples; 50.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Most steps; overrides --epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a step; 32.")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            "--lr",
            help="By default the method's: 0.5 for prompts, 1e-4 for weights.",
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adafactor, the default, or adamw_torch.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="1e-5 by default.")] = None,
    warmup_ratio: Annotated[
        float | None, typer.Option(help="Share of steps to warm up; 0.06.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="linear, the default, cosine or constant_with_warmup.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many evaluations without improvement; 10.")
    ] = None,
    eval_steps: Annotated[
        int | None, typer.Option(help="Steps between evaluations; once an epoch by default.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest input in tokens; 512.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the backbone: auto, the default, fp32 or bf16.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="How the data are split; see `smop tasks`.")
    ] = None,
    train_examples: Annotated[
        int | None, typer.Option(help="Use only so many training examples.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other option of the method or its training."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of split, start, order and noise.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The run's directory; runs/TASK-MODEL-METHOD-sSEED."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an earlier run in --output.")
    ] = False,
) -> None:
    """Train soft prompts on a task, choose by validation, test once, save the adapter.

    Example: [bold]smop train --task cb --data superglue --model t5-base --seed 1[/bold]

    Without a network: [bold]smop train --task medley --model embedded --epochs 20[/bold]
    """
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
        "learning_rate": learning_rate,
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
    method_options = {key: value for key, value in asked.items() if value is not None}
    training_options = {key: value for key, value in trained.items() if value is not None}
    for key, value in typed_options(options or []).items():
        target = method_options if key in MethodSpec.model_fields else training_options
        target[key] = value
    content: dict[str, Any] = {
        "task": task,
        "data": data,
        "preset": preset,
        "train_examples": train_examples,
        "model": model,
        "seed": seed,
        "method": {**chosen.method, **method_options},
        "training": {**chosen.training, **training_options},
    }
    spec = RunSpec.of(content)
    where = output or Path("runs") / default_name(spec, chosen.name)
    try:
        result = run(
            spec,
            where,
            resume=resume,
            overwrite=overwrite,
            console=console,
            title=method,
            certified=True,
        )
    except KeyboardInterrupt:
        console.print(f"stopped; {where} is kept: the same command with --resume goes on with it")
        raise typer.Exit(130) from None
    print_result(Console(highlight=False), result, where)


def default_name(spec: RunSpec, method: str) -> str:
    """A run's directory when none is given."""
    # not Path.stem, which would cut Llama-3.2-1B at its dot
    task = Path(spec.task).name.removesuffix(".yaml").removesuffix(".yml")
    model = Path(spec.model).name.removesuffix(".gguf")
    return "-".join([task, model, method.replace(":", "-"), f"s{spec.seed}"])
