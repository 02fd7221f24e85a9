"""`smop report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from peft_smop.cli.terminal import Console
from peft_smop.errors import RunError


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs, or directories that hold runs, such as a sweep's.")
    ],
    tables: Annotated[
        str | None,
        typer.Option(
            "--paper", help="The paper's tables to stand beside: 2,7; by default those that fit."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A directory; RUNS/report by default.")
    ] = None,
) -> None:
    """Make tables and figures of finished runs, ours beside the paper's.

    Markdown, LaTeX, CSV, PNG, SVG, PDF, and one page of HTML that needs nothing beside it.

    Example: [bold]smop report runs/sweep-table2[/bold]
    """
    for path in runs:
        if not path.is_dir():
            raise RunError(f"{path} is not a directory; expected a run's, or one that holds runs")
    from peft_smop.report.gathering import gather
    from peft_smop.report.page import tables_of, write_report
    from peft_smop.report.paper import check_tables

    numbers = [part.strip() for part in (tables or "").split(",") if part.strip()]
    check_tables(numbers)
    groups = gather(runs)
    found = tables_of(groups, numbers)
    where = output or runs[0] / "report"
    if where.exists() and not where.is_dir():
        raise RunError(f"{where} is a file; expected a directory for the report")
    pictures = write_report(groups, found, where)
    console = Console(highlight=False)
    width = min(console.width, 120) if console.is_terminal else 80
    for table in found:
        print(table.text(width))
        print()
    drawn = ", ".join(picture.name for picture in pictures)
    console.print(
        Text(
            f"{where}: report.html, report.md, report.tex, runs.csv (their runs in numbers), a CSV"
            f" for each table; figures: {drawn}"
        ),
        soft_wrap=True,
    )
