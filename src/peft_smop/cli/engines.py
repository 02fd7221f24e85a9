"""Who runs many runs: the options by which commands choose, and what is seen while they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from peft_smop.cli.groups import Group, parameters_of
from peft_smop.cli.options import RUN
from peft_smop.cli.show import plain_table
from peft_smop.cli.terminal import Console
from peft_smop.errors import ConfigError, SMoPError

if TYPE_CHECKING:
    from peft_smop.lab.local import Standing
    from peft_smop.lab.study import Work
    from peft_smop.lab.sweep import Job
    from peft_smop.lab.working import Store

ENGINES = "Who runs them"


class EngineName(StrEnum):
    """Who runs a store's runs."""

    local = "local"
    ray = "ray"


Jobs: TypeAlias = Annotated[
    int, typer.Option("--jobs", "-j", min=1, help="Runs at a time.", rich_help_panel=ENGINES)
]
Pack: TypeAlias = Annotated[
    int,
    typer.Option(
        min=1,
        help="Runs of the SMoP family that are trained at once, in one pass.",
        rich_help_panel=ENGINES,
    ),
]
EngineOption: TypeAlias = Annotated[
    EngineName,
    typer.Option(
        help=r"Processes of this machine, or a Ray cluster's (peft-smop\[ray]).",
        rich_help_panel=ENGINES,
    ),
]
Address: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Of the Ray cluster, such as host:6379; without it, Ray is started here.",
        rich_help_panel=ENGINES,
    ),
]
CpusPerRun: TypeAlias = Annotated[
    float, typer.Option(help="Cores that Ray keeps for a run.", rich_help_panel=ENGINES)
]
GpusPerRun: TypeAlias = Annotated[
    float, typer.Option(help="Accelerators, or a part of one.", rich_help_panel=ENGINES)
]
ReportTo: TypeAlias = Annotated[
    str | None,
    typer.Option(help="tensorboard, wandb, mlflow: the Trainer's own names.", rich_help_panel=RUN),
]


def reports_in(text: str | None) -> tuple[str, ...]:
    """The places of a list with commas that runs report to.

    Raises:
        ConfigError: one is unknown, or its package is not installed.
    """
    from peft_smop.training.reporting import check_report_to

    names = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    check_report_to(names)
    return names


@dataclass(frozen=True)
class Engine:
    """Who runs the runs of a command, as its options say."""

    jobs: Jobs = 1
    pack: Pack = 1
    engine: EngineOption = EngineName.local
    address: Address = None
    cpus_per_run: CpusPerRun = 1
    gpus_per_run: GpusPerRun = 0
    report_to: ReportTo = None

    def on(self, console: Console) -> Work:
        """The engine, which says on a console how it goes.

        Raises:
            ConfigError: an option is the other engine's, or a place to report to is unknown.
        """
        shared: dict[str, Any] = {
            "workers": self.jobs,
            "pack": self.pack,
            "report_to": reports_in(self.report_to),
        }
        ray: dict[str, Any] = {
            "address": self.address,
            "cpus_per_run": self.cpus_per_run,
            "gpus_per_run": self.gpus_per_run,
        }
        if self.engine is EngineName.ray:
            from peft_smop.lab.on_ray import run_on_ray

            return partial(_watched, partial(run_on_ray, **shared, **ray), console)
        if any(getattr(Engine, name) != value for name, value in ray.items()):
            raise ConfigError("--address, --cpus-per-run and --gpus-per-run are for --engine ray")
        from peft_smop.lab.local import run_locally

        if self.jobs == 1:  # its runs say themselves how they go
            return partial(run_locally, **shared, console=console)
        return partial(_watched, partial(run_locally, **shared), console)


ENGINE_GROUP = Group(parameters_of(Engine), Engine)


def _watched(
    work: Callable[..., dict[str, SMoPError]],
    console: Console,
    jobs: Sequence[Job],
    store: Store,
) -> dict[str, SMoPError]:
    """Work of other processes, and how far it is."""
    from peft_smop.lab.working import State

    if console.is_terminal:
        with Live(console=console, transient=True, refresh_per_second=4) as live:
            return work(jobs, store, on_look=lambda now: live.update(_live(now)))
    seen: set[str] = set()

    def tell(now: Standing) -> None:
        for job in jobs:
            state = now.states[job.directory]
            if state in (State.finished, State.failed) and job.directory not in seen:
                seen.add(job.directory)
                said = f"{state.value}: {job.directory}; {summary(now)}"
                console.print(said, markup=False)

    return work(jobs, store, on_look=tell)


def summary(now: Standing) -> str:
    """How far a sweep is, in a line."""
    from peft_smop.lab.working import State

    done, failed = now.count(State.finished), now.count(State.failed)
    said = f"{len(now.jobs)} runs, {done} done"
    if failed:
        said += f", {failed} failed"
    if done == len(now.jobs):
        return said
    if now.seconds_left is None:
        return f"{said}; the time left is known when one has finished"
    return f"{said}; about {duration(now.seconds_left)} left"


def _live(now: Standing) -> Table:
    """The runs that run, under how far everything is."""
    from peft_smop.lab.working import State

    table = plain_table("running", "step", "validation")
    for job in now.jobs:
        if now.states[job.directory] is State.running:
            step, score = now.steps[job.directory]
            of = job.spec.training.max_steps
            table.add_row(
                Text(job.directory, overflow="ellipsis"),
                f"{step}/{of}" if of else str(step),
                "–" if score is None else f"{score:.1f}",
            )
    table.caption = summary(now)
    return table


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
