"""`smop sweep`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from peft_smop.cli.engines import ENGINE_GROUP, Engine, duration, summary
from peft_smop.cli.groups import joined, training_group, with_groups
from peft_smop.cli.named import names_in
from peft_smop.cli.options import (
    DATA,
    METHOD,
    RUN,
    TRAINING,
    Data,
    SetForAll,
    TrainExamples,
)
from peft_smop.cli.show import plain_table
from peft_smop.cli.terminal import Console
from peft_smop.errors import ConfigError
from peft_smop.names import check_values, training_options, typed
from peft_smop.tasks import check_task

if TYPE_CHECKING:
    from peft_smop.lab.local import Standing
    from peft_smop.lab.sweep import Job


@with_groups(
    training=training_group(without=["learning_rate"], defaults=False), engine=ENGINE_GROUP
)
def sweep(
    *,
    source: Annotated[
        str | None,
        typer.Argument(metavar="[SPEC]", help="A sweep's YAML, or a preset such as paper/table2."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks", "--task", "-t", help="Tasks, commas between them.", rich_help_panel=DATA
        ),
    ] = None,
    data: Data = None,
    train_examples: TrainExamples = None,
    models: Annotated[
        str | None,
        typer.Option("--models", "--model", "-m", help="Backbones.", rich_help_panel=METHOD),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            "--method",
            help="As for compare: smop:k=8,lora-8.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    k: Annotated[
        str | None,
        typer.Option("--k", "-k", help="Numbers of prompts: 2,4,10.", rich_help_panel=METHOD),
    ] = None,
    length: Annotated[
        str | None,
        typer.Option("--l", "-l", help="Lengths of a prompt: 1,5.", rich_help_panel=METHOD),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(
            "--lr",
            help="Learning rates; 'search': all of each method's kind.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    training: dict[str, Any],
    options: SetForAll = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each.", rich_help_panel=RUN)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The first seed; 0.", rich_help_panel=RUN)
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="SPEC's small form, for two cores.", rich_help_panel=RUN)
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say how many runs, and do none.", rich_help_panel=RUN),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The store; runs/sweep-NAME.", rich_help_panel=RUN),
    ] = None,
    engine: Engine,
) -> None:
    """Run a grid: tasks x methods x k x l x learning rates x seeds x backbones.

    Stopped, killed or called from several machines at once, the same command goes on with the same
    store: a finished run is not run again, and no run is done by two.

    Example: [bold]smop sweep -t medley -m embedded --methods smop --k 2,4 --l 1,5 --seeds 2
    --max-steps 120 -j 2[/bold]

    The paper's second table: [bold]smop sweep paper/table2 --data superglue[/bold]
    """
    if source is None and small:
        raise ConfigError("--small is a specification's small form; name one, such as paper/table2")
    for task in _split(tasks) or ():
        check_task(task)
    asked: dict[str, Any] = {
        "task": _split(tasks),
        "model": _split(models),
        "method": None if methods is None else names_in(methods),
        "k": _typed(k, "num_prompts"),
        "l": _typed(length, "num_virtual_tokens"),
        "lr": "search" if rates == "search" else _typed(rates, "learning_rate"),
        "seed": _seeds(seed, seeds),
        "data": data,
        "train_examples": train_examples,
    }
    changes = {key: value for key, value in asked.items() if value is not None}
    if training_asked := joined(training, options, training_options()):
        changes["training"] = training_asked
    from peft_smop.lab.local import standing
    from peft_smop.lab.sweep import jobs_of, load_sweep
    from peft_smop.lab.working import Store

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    work = engine.on(console)
    wanted = jobs_of(changes) if source is None else load_sweep(source, changes, small=small)
    named = "command" if source is None else Path(source).name.removesuffix(".yaml")
    store = Store(output or Path("runs") / f"sweep-{named}{'-small' if small else ''}")
    now = standing(wanted, store, workers=engine.jobs)
    console.print(summary(now), markup=False)
    if dry_run:
        _print_grid(Console(highlight=False), wanted, now)
        return
    begun = time.monotonic()
    try:
        failed = work(wanted, store)
    except KeyboardInterrupt:
        console.print(f"stopped; {store.path} is kept: the same command goes on with it")
        raise typer.Exit(130) from None
    done = len(wanted) - len(failed)
    out = Console(highlight=False)
    out.print(
        f"{done} of {len(wanted)} runs are finished, after {duration(time.monotonic() - begun)}",
        soft_wrap=True,
    )
    for directory, reason in failed.items():
        out.print(Text(f"failed: {directory}: {reason}", style="yellow"), soft_wrap=True)
    out.print(Text(f"next: smop report {store.path}", style="dim"), soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _print_grid(console: Console, wanted: list[Job], now: Standing) -> None:
    """What would be run, one line for each method, task and backbone."""
    from peft_smop.lab.working import State

    if not console.is_terminal:
        console.width = 160
    table = plain_table("method", "task", "backbone", "rates", "seeds", "done")
    groups: dict[tuple[str, str, str], list[Job]] = {}
    for job in wanted:
        key = (job.name, Path(job.spec.task).stem, Path(job.spec.model).name)
        groups.setdefault(key, []).append(job)
    for (method, task, model), own in groups.items():
        rates = dict.fromkeys(str(job.spec.learning_rate) for job in own)
        done = sum(now.states[job.directory] is State.finished for job in own)
        table.add_row(
            method,
            task,
            model,
            " ".join(rates),
            str(len({job.spec.seed for job in own})),
            f"{done} of {len(own)}",
        )
    console.print(table)


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _typed(text: str | None, option: str) -> list[Any] | None:
    """The values of a list for one option.

    Raises:
        ConfigError: the option does not take one of them.
    """
    parts = _split(text)
    values = None if parts is None else [typed(part) for part in parts]
    for value in values or ():
        check_values({option: value})
    return values


def _seeds(first: int | None, count: int | None) -> list[int] | None:
    if first is None and count is None:
        return None
    return list(range(first or 0, (first or 0) + (count or 1)))
