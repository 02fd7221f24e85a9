"""`smop predict`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from peft_smop.cli.named import check_path
from peft_smop.cli.options import BackboneOfTrained, TaskOfAdapter, TrainedPath
from peft_smop.tasks import read_inputs


def predict(
    path: TrainedPath,
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="JSONL, CSV or Parquet; '-' reads JSONL.")
    ] = Path("-"),
    task: TaskOfAdapter = None,
    model: BackboneOfTrained = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a pass.")] = 32,
    seed: Annotated[int, typer.Option(help="Predicting draws nothing; kept for scripts.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here; standard output by default.")
    ] = None,
) -> None:
    """Label examples: one JSON object a line with label, probabilities and the prompt chosen.

    A row of INPUT has the fields of the task's template, or the finished text as "text".

    Example: [bold]echo '{"text": "..."}' | smop predict runs/cb-t5-base-smop-s0[/bold]
    """
    check_path(path)
    from peft_smop.lab import load_trained, predictions_as_rows
    from peft_smop.results import write_jsonl
    from peft_smop.scoring import predict as predict_examples

    trained = load_trained(path, task=task, model=model)
    examples = read_inputs(trained.task, sys.stdin if str(source) == "-" else source)
    predictions = predict_examples(
        trained.model, trained.formulation, examples, batch_size=batch_size
    )
    rows = predictions_as_rows(trained.task, predictions)
    if output:
        write_jsonl(output, rows)
    else:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    cut = trained.formulation.truncated
    if cut:
        Console(stderr=True).print(
            f"{cut} of {len(rows)} inputs are longer than {trained.formulation.max_length}"
            " tokens and were cut"
        )
