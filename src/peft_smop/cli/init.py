"""`smop init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from peft_smop.cli.show import plain_table
from peft_smop.cli.terminal import Console
from peft_smop.errors import DataError, RunError
from peft_smop.tasks import load_task


def init(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, CSV, TSV or Parquet.")],
    label: Annotated[str | None, typer.Option(help="The column with the label.")] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A column with text; again for another one.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the task; the file's by default.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The YAML; beside the file by default.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over a YAML that is there.")
    ] = False,
) -> None:
    """Look at a file of examples and write the task's YAML for it.

    Example: [bold]smop init tickets.csv[/bold]
    """
    from peft_smop.tasks.looking import look, relative

    if source.is_dir():
        raise RunError(f"{source} is a directory; expected a file of examples")
    where = output or source.with_suffix(".yaml")
    if where.exists() and not overwrite:
        raise RunError(f"{where} is there already; use --overwrite, or another --output")
    if where.exists() and source.exists() and where.samefile(source):
        raise RunError(f"{where} is what is read; give another --output")
    found = look(source, label=label, texts=text or (), name=name)
    content = {**found.content, "data": relative(source, where)}
    written = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    try:
        where.write_text(written, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{where} cannot be written: {error.strerror}") from error
    console = Console(highlight=False)
    console.print(
        f"{source}: {found.rows} rows; {'; '.join(found.found)}", markup=False, soft_wrap=True
    )
    table = plain_table("label", "rows")
    for key, count in sorted(found.counts.items(), key=lambda item: -item[1]):
        table.add_row(key, str(count))
    console.print(table)
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    try:
        split = load_task(where).split
    except DataError as error:
        console.print(
            f"warning: training will refuse it: {error}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    else:
        sizes = ", ".join(
            f"{len(getattr(split, part))} {part}" for part in ("train", "validation", "test")
        )
        console.print(f"a split: {sizes}")
    console.print(
        f"wrote {where}; look at it, then: smop train --task {where} --model embedded",
        markup=False,
        soft_wrap=True,
    )
