"""The command `smop`: its sub-commands, and what happens when one fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.markup import escape

from peft_smop import __version__
from peft_smop.cli import (
    compare,
    cost,
    demo,
    doctor,
    evaluate,
    export,
    init,
    methods,
    predict,
    report,
    routes,
    serve,
    sweep,
    tasks,
    train,
)
from peft_smop.cli.terminal import Console, has_control
from peft_smop.errors import ConfigError, SMoPError
from peft_smop.quiet import quiet_libraries

app = typer.Typer(
    name="smop",
    help="Sparse mixtures of soft prompts for frozen models:"
    " train, sweep, compare, report, cost, evaluate, predict, serve, export.",
    epilog="Begin with: [bold]smop demo[/bold]  (three minutes, nothing to download)",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"smop {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """What may stand before a command."""


GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "See what there is": (init.init, tasks.tasks, methods.methods, demo.demo),
    "Train and compare": (train.train, sweep.sweep, compare.compare, report.report, cost.cost),
    "Use what was trained": (
        predict.predict,
        serve.serve,
        export.export,
        evaluate.evaluate,
        routes.routes,
        doctor.doctor,
    ),
}
for group, commands in GROUPS.items():
    for command in commands:
        app.command(command.__name__, rich_help_panel=group)(command)


def main() -> None:
    """Run the command; a user's mistake ends with one sentence and exit code 2."""
    quiet_libraries()
    try:
        _refuse_control(sys.argv[1:])
        app()
    except SMoPError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[bold red]error:[/] {escape(str(error))}"
        )
        sys.exit(2)


def _refuse_control(arguments: list[str]) -> None:
    """Refuse what a terminal would obey where it names nothing, as it would be said back.

    Raises:
        ConfigError: an argument holds control characters.
    """
    for argument in arguments:
        if has_control(argument) and not os.path.lexists(argument):
            raise ConfigError(f"argument {argument!r} holds control characters; leave them out")
