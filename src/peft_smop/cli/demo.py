"""`smop demo`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from peft_smop.cli.terminal import Console

if TYPE_CHECKING:
    from peft_smop.report import Row

MIXTURE = "SMoP by posterior, k=4 l=5"
CANDIDATES: dict[str, dict[str, Any]] = {
    "single prompt, l=5": {"name": "single", "num_virtual_tokens": 5},
    "prompt tuning, l=20": {"name": "prompt-tuning", "num_virtual_tokens": 20},
    "SMoP as published, k=4 l=5": {"name": "smop", "num_prompts": 4, "num_virtual_tokens": 5},
    MIXTURE: {
        "name": "smop",
        "routing": "posterior",
        "num_prompts": 4,
        "num_virtual_tokens": 5,
    },
}
STEPS, EVERY = 240, 60


def demo(
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the runs and the pictures go.")
    ] = Path("runs/demo"),
) -> None:
    """Compare four ways to prompt a small frozen model, on this machine, without a download.

    The task has nine kinds of inputs that want different things, and nobody says which is which: a
    mixture whose router is trained on its posterior finds out. The model and the task are
    generated; they show how things work and prove nothing about others.

    Example: [bold]smop demo --seeds 5[/bold]
    """
    from peft_smop.lab import Variant, study
    from peft_smop.lab.local import run_locally
    from peft_smop.report import compare, draw

    console = Console(highlight=False)
    started = time.monotonic()
    console.print(
        f"{len(CANDIDATES)} methods, {seeds} seeds each: {len(CANDIDATES) * seeds} trainings of"
        f" {STEPS} steps of a frozen T5 with 1 M parameters. Three minutes on an idle core.",
        soft_wrap=True,
    )
    groups = study(
        {
            "task": "medley",
            "model": "embedded",
            "training": {"max_steps": STEPS, "eval_steps": EVERY},
        },
        [Variant(title, method) for title, method in CANDIDATES.items()],
        seeds=range(seed, seed + seeds),
        trials=1,
        output=output,
        engine=partial(run_locally, console=Console(stderr=True, highlight=False)),
    )
    picture = output / "comparison.png"
    draw(groups, picture, title="medley on the embedded T5: a demonstration, not evidence")
    rows = compare(groups)
    console.print(_table(rows))
    console.print(
        f"mean ± sd over {seeds} seeds, {rows[0].examples} test examples;"
        f" always the majority label: {rows[0].majority:.1f}",
        soft_wrap=True,
    )
    best = groups[MIXTURE][0]
    verdict = _certify(best, output / "routes.png")
    console.print(
        f"\n{MIXTURE}, seed {seed}: {verdict}"
        f"\nWhich kind of input goes to which prompt is in {output / 'routes.png'}; nobody told it."
        f"\n{time.monotonic() - started:.0f} s. The comparison is {picture}, each run beside it;"
        f" one prediction a line is in {best / 'predictions.jsonl'}."
        "\nThe model and the task are generated for this demonstration: no evidence for any other."
        f"\nNext:  smop routes {best}    smop train --help    smop tasks",
        soft_wrap=True,
    )


def _certify(path: Path, picture: Path) -> str:
    """What routing is worth in a run, on its validation examples, drawn; the verdict."""
    from peft_smop.lab import load_trained, part_of_task
    from peft_smop.report import draw_routes
    from peft_smop.scoring import certify

    trained = load_trained(path)
    examples = part_of_task(trained, "validation").examples
    found = certify(trained.model, trained.formulation, examples)
    draw_routes(asdict(found), picture, title="medley on the embedded T5, validation examples")
    return found.verdict


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "accuracy", "each seed", "trained", "load", "s"):
        justify: Literal["left", "right"] = "left" if column == "method" else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            row.spread,
            " ".join(f"{score:.1f}" for score in row.scores),
            f"{row.trainable:,}",
            " ".join(f"{part:.0%}" for part in row.load) if len(row.load) > 1 else "",
            f"{sum(row.seconds) / len(row.seconds):.0f}",
        )
    return table
