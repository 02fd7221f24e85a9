"""`smop predict`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from peft_smop.cli.named import check_path
from peft_smop.cli.options import BackboneOfTrained, TaskOfAdapter, TrainedPath
from peft_smop.cli.show import plain_table
from peft_smop.cli.terminal import Console, json_line
from peft_smop.errors import ConfigError, DataError, unknown
from peft_smop.tasks import Broken, Row, Task, Writing, parse_lines, read_each
from peft_smop.tasks.reading import shown

if TYPE_CHECKING:
    from peft_smop.predictor.labelling import Bad, Tally

INPUT, OUTPUT = "What is read", "What is written"
MOST_COLUMNS = 12


def predict(
    path: TrainedPath,
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="JSONL, CSV, TSV or Parquet; '-' reads JSONL.")
    ] = Path("-"),
    task: TaskOfAdapter = None,
    model: BackboneOfTrained = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a pass.")] = 32,
    seed: Annotated[int, typer.Option(help="Predicting draws nothing; kept for scripts.")] = 0,
    delimiter: Annotated[
        str | None, typer.Option(help="Between values of CSV.", rich_help_panel=INPUT)
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="Of the file, such as cp1252; UTF-8.", rich_help_panel=INPUT),
    ] = None,
    quoting: Annotated[
        Literal["double", "none"] | None,
        typer.Option(help="Whether values may stand in double quotes.", rich_help_panel=INPUT),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            help="The true label's column, for scores; 'label' where it is.", rich_help_panel=INPUT
        ),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Pass over rows without use.", rich_help_panel=INPUT),
    ] = False,
    bad: Annotated[
        Path | None,
        typer.Option(
            help="Where those go, as JSONL; OUTPUT.bad.jsonl or INPUT.bad.jsonl.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="JSONL, CSV, TSV or Parquet; standard output, as JSONL.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Least probability to give a label by.", rich_help_panel=OUTPUT
        ),
    ] = 0.0,
    prefix: Annotated[
        str, typer.Option(help="Before the names of added columns.", rich_help_panel=OUTPUT)
    ] = "",
) -> None:
    """Label the rows of a file or a stream; their columns are kept, the answers added.

    A row has the fields of the task's template, or the finished text as "text". Added are
    prediction, confidence, probabilities and, for a mixture, prompt and prompt_probability.

    Example: [bold]smop predict runs/tickets tickets.csv -o labelled.csv[/bold]

    A line in, a line out: [bold]tail -f log.jsonl | smop predict runs/tickets[/bold]
    """
    streams = str(source) == "-"
    check_path(path)
    if delimiter is not None and len(delimiter) != 1:
        raise ConfigError(f"--delimiter {delimiter!r} must be one character")
    rows = [] if streams else read_each(source, writing=Writing(delimiter, encoding, quoting))
    if rows and not skip_bad:
        _refuse_broken(rows)
    _check_has(rows, label)
    from peft_smop.predictor import Predictor
    from peft_smop.predictor.labelling import PASSES, Labelling, Tally, as_they_come, groups_of
    from peft_smop.predictor.writing import check_output, write_rows

    read = [] if streams else [source]
    if output is not None:
        check_output(output, *read)
    bad_file = bad or _beside(output or source)
    if skip_bad:
        check_output(bad_file, *read, *([output] if output else []))
    predictor = Predictor.load(path, task=task, model=model)
    nested = output is None or output.suffix.lower() == ".jsonl"
    labelling = Labelling(
        predictor, threshold, label or "label", prefix, skip_bad, batch_size, nested
    )
    tally = Tally()
    groups = (
        as_they_come(parse_lines(_lines(), "<stdin>"), batch_size)
        if streams
        else groups_of(rows, PASSES * batch_size)
    )
    put_aside: list[dict[str, Any]] = []
    answered = _good(labelling.run(groups, tally), put_aside)
    if output is None:
        for row in answered:
            print(json_line(row), flush=streams)
    else:
        write_rows(output, answered)
    if streams and not tally.rows:
        raise DataError.at("<stdin>", None, "no rows", expected="one JSON object a line")
    if put_aside:
        write_rows(bad_file, put_aside)
    _report(tally, predictor.task(), labelling.threshold, bad_file)


def _refuse_broken(rows: list[Row | Broken]) -> None:
    """Refuse a file that is not whole before anything is loaded or written."""
    broken = next((row for row in rows if isinstance(row, Broken)), None)
    if broken is not None:
        raise broken.error


def _check_has(rows: Sequence[Row | Broken], label: str | None) -> None:
    """Refuse a column that no row has.

    Raises:
        ConfigError: with the columns that there are.
    """
    columns = dict.fromkeys(key for row in rows if isinstance(row, Row) for key in row.fields)
    if label is not None and columns and label not in columns:
        raise unknown("column", label, columns)


def _lines() -> Iterator[str]:
    """The lines of the standard input, decoded by us, whatever the locale says."""
    stream = getattr(sys.stdin, "buffer", sys.stdin)
    for number, line in enumerate(stream, start=1):
        try:
            text = line if isinstance(line, str) else line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise DataError.at(
                "<stdin>", number, f"byte 0x{byte:02x} is not UTF-8", expected="UTF-8"
            ) from error
        yield text.removeprefix("\ufeff") if number == 1 else text


def _good(
    found: Iterator[dict[str, Any] | Bad], put_aside: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    for row in found:
        if isinstance(row, dict):
            yield row
        else:
            put_aside.append(row.as_dict())


def _beside(path: Path) -> Path:
    name = "stdin" if str(path) == "-" else path.name
    return path.with_name(f"{name}.bad.jsonl")


def _report(tally: Tally, task: Task, threshold: float, bad_file: Path) -> None:
    """Say on the standard error what a reader of the output would not see."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    said = [f"{tally.rows} rows, {tally.rows - tally.bad} answered"]
    if tally.bad:
        said.append(f"{tally.bad} bad ones are in {bad_file}")
    if tally.abstained:
        said.append(f"{tally.abstained} below {threshold:g} have no label")
    if tally.truncated:
        said.append(f"{tally.truncated} inputs were longer than the model reads, and were cut")
    console.print("; ".join(said), markup=False)
    if tally.strange:
        some = ", ".join(f"{shown(value)} ({n})" for value, n in tally.strange.most_common(5))
        console.print(
            f"warning: not scored are {tally.strange.total()} rows, whose label is none of the"
            f" task's: {some}; expected {', '.join(task.labels[:8])}",
            style="yellow",
            markup=False,
        )
    if not tally.truth:
        return
    right = sum(t == g for t, g in zip(tally.truth, tally.given, strict=True))
    n = len(tally.truth)
    console.print(f"{n} have a label: {right} right, {100 * right / n:.1f} %", markup=False)
    scores = tally.scores(task)
    table = plain_table("label", "precision", "recall", "f1", "rows")
    for one in scores:
        shares = [_percent(one.precision), _percent(one.recall), _percent(one.f1)]
        table.add_row(one.label, *shares, str(one.examples))
    console.print(table)
    if len(scores) <= MOST_COLUMNS:
        console.print("rows: the label they have; columns: the one they were given")
        table = plain_table("", *map(str, range(1, len(scores) + 1)), "none")
        for number, one in enumerate(scores, start=1):
            table.add_row(f"{number} {one.label}", *map(str, one.taken_for))
        console.print(table)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"
