"""`smop doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peft_smop.cli.named import check_path
from peft_smop.cli.terminal import Console


def doctor(
    path: Annotated[Path, typer.Argument(help="A finished run's directory.")],
) -> None:
    """Say why a run does not learn, and what to do.

    Its model is asked before and after training, on some of the training examples.

    Example: [bold]smop doctor runs/medley-embedded-smop-s0[/bold]
    """
    check_path(path)
    from peft_smop.lab import diagnose, figure, signs_of

    console = Console(highlight=False, soft_wrap=True)
    with console.status("asking the model before and after training"):
        signs = signs_of(path)
    fell = f"loss of training examples {signs.loss_before:.2f} before, {signs.loss_after:.2f} after"
    console.print(f"{signs.steps} steps at {signs.learning_rate:g}: {fell}", markup=False)
    if signs.scale is not None:
        console.print(
            f"prompts, in spreads of the embeddings ({signs.spread:.3g}):"
            f" {figure(signs.scale.at_start)} wide at the start, {figure(signs.scale.at_end)} wide"
            f" at the end, {figure(signs.scale.moved)} away from where they started",
            markup=False,
        )
    found = diagnose(signs)
    if not found:
        console.print("nothing wrong was seen", style="bold green")
    for finding in found:
        console.print(finding.cause, style="bold", markup=False)
        console.print(f"  seen: {finding.seen}", markup=False)
        console.print(f"  do:   {finding.remedy}", markup=False)
