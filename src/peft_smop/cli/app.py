"""The command `smop`: its sub-commands, and what happens when one fails."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import typer
from rich.console import Console
from rich.markup import escape

from peft_smop.cli import compare, cost, demo, evaluate, methods, predict, routes, tasks, train
from peft_smop.errors import SMoPError

app = typer.Typer(
    name="smop",
    help="Sparse mixtures of soft prompts for frozen models:"
    " train, compare, cost, evaluate, predict, routes.",
    epilog="Begin with: [bold]smop demo[/bold]  (three minutes, nothing to download)",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("compare")(compare.compare)
app.command("cost")(cost.cost)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("routes")(routes.routes)
app.command("tasks")(tasks.tasks)
app.command("methods")(methods.methods)
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command; a user's mistake ends with one sentence and exit code 2."""
    _quiet_libraries()
    try:
        app()
    except SMoPError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[bold red]error:[/] {escape(str(error))}"
        )
        sys.exit(2)


def _quiet_libraries() -> None:
    """Leave out what the libraries say about themselves and a user can do nothing about."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", message="Could not find a config file", module="peft")
    # its retries are told in the end by one sentence of ours
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
