"""How results look on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from peft_smop.cli.terminal import Console

if TYPE_CHECKING:
    from peft_smop.lab import PartOfTask
    from peft_smop.results import RunResult, TestScore


def fits(head: str, text: str) -> Table:
    """A head and a text beside it, whose lines stay beside it at any width."""
    table = Table.grid()
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_row(Text(head), Text(text))
    return table


def plain_table(*columns: str) -> Table:
    """A table without lines: a column of names, and columns of figures."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def or_dash(value: float | None, form: str) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def score_lines(score: TestScore, *, part: str) -> list[str]:
    """A score with everything needed to read it."""
    others = ", ".join(f"{name} {value:.1f}" for name, value in score.others.items())
    lines = [
        f"{part} {score.metric} {score.value:.1f}"
        f"   95 % interval {score.low:.1f} to {score.high:.1f}"
        f"   always the majority label: {score.majority:.1f}",
        f"{score.examples} examples, {score.points_per_example:.2f} points each; {others}",
    ]
    if len(score.load) > 1:
        lines.append("load of the prompts: " + "  ".join(f"{part:.0%}" for part in score.load))
    return lines


def warn_of_others(console: Console, own: PartOfTask, *, part: str) -> None:
    """Say so where the examples of a part are not those that the run recorded."""
    if not own.is_own:
        console.print(
            f"warning: these {part} examples are not the run's own; some may have been trained on",
            style="yellow",
            soft_wrap=True,
        )


FEW_ROWS = {"train": 10, "validation": 3, "test": 3}
"""Rows of a label below which a part is said to have few."""


def print_split(
    console: Console, record: Mapping[str, Any], *, train_examples: int | None = None
) -> None:
    """Tell what a split did: its sizes, texts on both sides, labels with few rows.

    Args:
        console: where.
        record: of the split.
        train_examples: how many of the training examples were asked for; None: all.
    """
    parts = record["parts"]
    counts = {name: str(part["examples"]) for name, part in parts.items()}
    if train_examples is not None and train_examples < parts["train"]["examples"]:
        counts["train"] = f"{train_examples} of {counts['train']}"
    sizes = ", ".join(f"{count} {name}" for name, count in counts.items())
    console.print(f"split {record['preset']}: {sizes} examples", markup=False, soft_wrap=True)
    warnings = []
    for name, part in parts.items():
        shared = part.get("texts_shared_with_train", 0)
        if shared:
            warnings.append(
                f"{shared} of {part['examples']} {name} texts stand in train too; give rows that"
                " belong together a group"
            )
        few = [f"{label} ({n})" for label, n in part["labels"].items() if n < FEW_ROWS[name]]
        if few:
            warnings.append(
                f"{name} has few rows of {', '.join(few[:8])}; its part in the score says little"
            )
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)


def print_result(console: Console, result: RunResult, where: Path) -> None:
    """Tell what a finished run came to."""
    training, parameters, environment = result.training, result.parameters, result.environment
    drops = {None: "", True: ", dropout on", False: ", dropout off"}[training.dropout]
    reads = ", head on the mean of states" if result.method.get("pooling") == "mean" else ""
    stopped = "stopped early" if training.stopped_early else "ran to its end"
    since = " since it was resumed" if training.resumed else ""
    lines = [
        f"{result.task}, {_method(result)} on {result.model}, seed {result.seed}",
        *score_lines(result.test, part="test"),
        f"validation {result.validation.score:.1f} at step {training.best_step}"
        f" of {training.steps} ({stopped}, {training.seconds:.0f} s{since})",
        f"trained {parameters.trainable:,} parameters, {parameters.percentage:.4f} %,"
        f" at a learning rate of {training.learning_rate:g}"
        f" (recipe {training.recipe}{drops}{reads})",
        f"backbone in {environment['precision']} on {environment['device']},"
        f" {environment['attention']} attention",
    ]
    if training.continued_at:
        steps = " and ".join(str(step) for step in training.continued_at)
        lines.append(f"trained on from step {steps}, where its schedule began anew")
    if result.truncated_test_inputs:
        lines.append(f"{result.truncated_test_inputs} test inputs were cut to the longest length")
    if result.routing:
        routing = result.routing
        if routing.refitted:
            lines.append("the router was fitted once more, to the finished prompts")
        if routing.pruned:
            lines.append(
                f"prompts taken away, as the validation loss does not rise without them:"
                f" {len(routing.pruned)} (--no-prune-prompts keeps all)"
            )
        lines.append(
            f"{routing.verdict} ({routing.examples} of {routing.of} validation examples;"
            f" more: smop routes {where})"
        )
    for number, line in enumerate(lines):
        console.print(Text(line, style="bold" if number == 0 else ""), soft_wrap=True)
    for alarm in result.test.alarms:
        console.print(Text(f"warning: {alarm}", style="yellow"), soft_wrap=True)
    console.print(
        Text(f"saved in {where}   next: smop predict {where} INPUT.jsonl", style="dim"),
        soft_wrap=True,
    )


def _method(result: RunResult) -> str:
    """A result's method, with the routing where it is not the method's own."""
    name, routing = result.method["name"], result.method.get("routing")
    return name if routing is None else f"{name} ({routing})"
