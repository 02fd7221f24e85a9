"""`smop cost`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from peft_smop.cli.definitions import GFLOPS, MEMORY, SECONDS, TRAINED
from peft_smop.cli.named import names_in
from peft_smop.cli.options import DATA, METHOD, RUN, Data
from peft_smop.cli.show import or_dash, plain_table
from peft_smop.cli.terminal import Console
from peft_smop.errors import ConfigError
from peft_smop.names import DEFAULT_MODEL
from peft_smop.tasks import check_task

if TYPE_CHECKING:
    from peft_smop.costs import Cost
    from peft_smop.lab import Costing

COLUMNS = {
    "trained": "trained",
    "inference text": "text",
    "inference sorted": "sorted",
    "inference random": "random",
    "seconds": "s/100",
    "memory": "MiB",
}
"""The kinds of `CostRatios.ours` and their columns; the paper's stand after the last of a kind."""
PAPER_AFTER = {
    "trained": "trained",
    "inference random": "inference",
    "seconds": "seconds",
    "memory": "memory",
}
RATIOS = (
    "every figure over the first method's, ours and then the paper's: its Table 1 (trained) and its"
    " Tables 9 to 11 for the same task, which say nothing of padding or of what a sample is;"
    " measured on an RTX A6000"
)


def cost(
    task: Annotated[
        str,
        typer.Option(
            "--task",
            "-t",
            help="A task of `smop tasks` or a YAML; several with commas between.",
            rich_help_panel=DATA,
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(
            help="Names of `smop methods`, commas between them. Ratios are to the first.",
            rich_help_panel=METHOD,
        ),
    ] = "smop,smop-posterior,single,prompt-tuning-20,prompt-tuning-100,p-tuning-20,full",
    data: Data = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help="As for `smop train`; t5-small, t5-base and t5-large need no weights.",
            rich_help_panel=METHOD,
        ),
    ] = DEFAULT_MODEL,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="A directory with the tokenizer to count lengths with.", rich_help_panel=DATA
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of every input; no data are read then.", rich_help_panel=DATA
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows in a batch.", rich_help_panel=RUN)
    ] = 32,
    batches: Annotated[
        Literal["sorted", "random"],
        typer.Option(
            help="Time and memory of batches of similar length, or in random order.",
            rich_help_panel=RUN,
        ),
    ] = "sorted",
    steps: Annotated[
        int,
        typer.Option(
            min=0, help="Steps to time; 0 leaves time and memory out.", rich_help_panel=RUN
        ),
    ] = 3,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="Of the backbone.", rich_help_panel=RUN)
    ] = "auto",
    json: Annotated[
        Path | None, typer.Option(help="A file for all figures.", rich_help_panel=RUN)
    ] = None,
) -> None:
    """Measure what methods cost: parameters, operations, time, memory. Nothing is learned.

    Example: [bold]smop cost --task medley --model embedded --methods smop,lora-8,full[/bold]

    The paper's: [bold]smop cost --task rte --data superglue --model t5-base[/bold]
    """
    names = names_in(methods)
    tasks = [name.strip() for name in task.split(",") if name.strip()]
    if not tasks:
        raise ConfigError("--task names no task; see smop tasks")
    for one in tasks:
        check_task(one)
    from peft_smop.costs import mean_cost
    from peft_smop.lab import costing, environment, progress_steps, variant
    from peft_smop.results import write_json

    chosen = [variant(name) for name in names]
    quiet = Console(stderr=True, highlight=False)
    found = []
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=quiet,
        transient=True,
        disable=not quiet.is_terminal,
    ) as progress:
        total = len(tasks) * progress_steps(len(chosen), steps)
        bar = progress.add_task(model, total=total)

        def advance(done: str) -> None:
            progress.update(bar, advance=1, description=f"{model}: {done}")

        for name in tasks:
            found.append(
                costing(
                    model,
                    chosen,
                    task=name,
                    data=data,
                    tokenizer=tokenizer,
                    length=length,
                    batch_size=batch_size,
                    order=batches,
                    steps=steps,
                    dtype=precision,
                    on_progress=advance,
                )
            )
    means = [mean_cost(same) for same in zip(*(one.costs for one in found), strict=True)]
    if json:
        content = {"costings": [asdict(one) for one in found], "environment": environment()}
        write_json(json, content)
    _print(found, means)


def _print(found: Sequence[Costing], means: Sequence[Cost]) -> None:
    """For every task its costs and their ratios, and the ratios of the means over tasks."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 180  # a file has no edge at which to cut
    for one in found:
        n = one.mean_length
        console.print(
            f"{one.task} on {one.model}: {one.backbone:,} parameters, weights {one.weights};"
            f" {n['text']:.1f} tokens a row, {n['sorted']:.1f} in sorted and {n['random']:.1f} in"
            f" random batches of {one.batch_size} ({one.lengths}), {one.answer_length} an answer\n",
            soft_wrap=True,
            markup=False,
        )
        _print_costs(console, one)
        _print_ratios(console, one.costs, model=one.model, tasks=[one.task])
    if len(found) > 1:
        console.print(f"mean over {len(found)} tasks\n")
        _print_ratios(console, means, model=found[0].model, tasks=[one.task for one in found])


def _print_costs(console: Console, found: Costing) -> None:
    names = ["method", "trained", "allocated", "%", "text", "sorted", "random", "training"]
    if found.steps:
        names += ["s/100", "quartiles", "MiB"]
        names += ["reserved"] if found.device == "cuda" else []
    table = plain_table(*names)
    for one in found.costs:
        cells = [one.method, f"{one.trainable:,}", f"{one.allocated:,}", f"{one.percentage:.4f}"]
        flops = one.inference
        cells += [f"{x:.4g}" for x in (flops.text, flops.sorted, flops.random, one.training.sorted)]
        if one.step:
            low, middle, high = (100 * x for x in (one.step.low, one.step.median, one.step.high))
            cells += [f"{middle:.4g}", f"{low:.4g} to {high:.4g}", _mib(one.memory)]
            cells += [_mib(one.reserved)] if found.device == "cuda" else []
        table.add_row(*cells)
    console.print(table)
    console.print()
    lines = [
        TRAINED,
        "text, sorted, random: GFLOPs of inference, one pass with its answer, for a training row at"
        " its own length and with the padding of sorted and of random batches; training: forward"
        " and backward in sorted batches",
        GFLOPS,
    ]
    if found.steps:
        step = (
            f"a step: forward, backward and Adafactor's update of {found.batch_size} rows of"
            f" {found.timed_length} tokens, the mean length in {found.timed_order} batches"
        )
        lines += [
            f"{SECONDS}, median and quartiles over {found.steps} steps, the methods in turn, the"
            f" first step left out; {step}",
            MEMORY + ("; reserved: what it held from the device" * (found.device == "cuda")),
        ]
    _print_definitions(console, lines)


def _print_ratios(
    console: Console, costs: Sequence[Cost], *, model: str, tasks: Sequence[str]
) -> None:
    from peft_smop.report import cost_ratios

    rows = cost_ratios(costs, model=model, tasks=tasks)
    shown = [kind for kind in COLUMNS if kind in rows[0].ours]
    with_paper = any(row.paper for row in rows)
    table = plain_table("ratio to the first")
    for kind in shown:
        table.add_column(COLUMNS[kind], justify="right", no_wrap=True)
        if with_paper and kind in PAPER_AFTER:
            table.add_column("paper", justify="right", no_wrap=True, style="cyan")
    for row in rows:
        cells = [row.method]
        for kind in shown:
            cells.append(_ratio(row.ours, kind))
            if with_paper and kind in PAPER_AFTER:
                cells.append(_ratio(row.paper, PAPER_AFTER[kind]))
        table.add_row(*cells)
    console.print(table)
    console.print()
    _print_definitions(console, [RATIOS if with_paper else "every figure over the first method's"])


def _print_definitions(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(f"[dim]{line}[/dim]", soft_wrap=True)
    console.print()


def _ratio(figures: Mapping[str, float], kind: str) -> str:
    value = figures.get(kind)
    return "" if value is None else f"{value:,.2f}"


def _mib(amount: int | None) -> str:
    return or_dash(None if amount is None else amount / 2**20, ",.0f")
