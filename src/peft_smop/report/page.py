"""A report on disk: Markdown, LaTeX, CSV, figures, and one page of HTML that needs nothing else."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

from peft_smop.report import tables
from peft_smop.report.figures import Picture, draw_all
from peft_smop.report.gathering import Group
from peft_smop.report.table import Table
from peft_smop.results import write_whole

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92em; }
thead th { border-bottom: 1.5px solid #333; text-align: right; padding: .25rem .7rem; }
thead th:first-child, tbody th { text-align: left; font-weight: 500; padding: .2rem .7rem .2rem 0; }
td { text-align: right; padding: .2rem .7rem; white-space: nowrap; }
tbody tr:nth-child(even) { background: #f6f6f6; }
td.paper { color: #767676; } td.missing { color: #a33; font-style: italic; }
ul { color: #555; font-size: .85em; padding-left: 1.1rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .85em; }
@media print { body { max-width: none; } section, figure { break-inside: avoid; } }
"""


def tables_of(groups: Sequence[Group], paper_tables: Sequence[str] = ()) -> list[Table]:
    """Every table that the runs give rise to.

    Args:
        groups: finished runs.
        paper_tables: numbers of the paper's tables to stand beside; by default those that fit.
    """
    found = (
        tables.scores(groups),
        tables.significance(groups),
        tables.over_tasks(groups),
        tables.routing(groups),
        tables.beside_the_paper(groups, paper_tables),
        tables.costs(groups),
    )
    return [table for table in found if table is not None]


def write_report(groups: Sequence[Group], found: Sequence[Table], folder: Path) -> list[Picture]:
    """Write a report.

    Args:
        groups: finished runs.
        found: their tables.
        folder: where everything goes.

    Returns:
        The pictures that were drawn.

    Raises:
        RunError: the place cannot be written to.
    """
    pictures = draw_all(groups, folder / "figures")
    title = _title(groups)
    lines = [f"# {title}", "", *(table.markdown() for table in found)]
    lines += [f"![{picture.title}](figures/{picture.name}.svg)\n" for picture in pictures]
    write_whole(folder / "report.md", "\n".join(lines))
    for table in found:
        write_whole(folder / f"{table.name}.csv", table.csv())
    write_whole(folder / "runs.csv", _runs(groups))
    write_whole(folder / "report.tex", _latex(title, found, pictures))
    write_whole(folder / "report.html", _html(title, found, pictures))
    return pictures


def _runs(groups: Sequence[Group]) -> str:
    """Every run of the tables in a line, its figures as numbers."""
    out = io.StringIO()
    lines = [
        {
            "method": group.label,
            "task": group.task,
            "model": group.model,
            "seed": run.result.seed,
            "metric": run.result.test.metric,
            "score": run.result.test.value,
            "validation": run.result.validation.score,
            "learning_rate": run.result.training.learning_rate,
            "steps": run.result.training.steps,
            "best_step": run.result.training.best_step,
            "seconds": run.result.training.seconds,
            "trainable": run.result.parameters.trainable,
            "worth": run.result.routing and run.result.routing.worth.value,
            "regret": run.result.routing and run.result.routing.regret.value,
            "run": str(run.path),
        }
        for group in groups
        for run in group.runs
    ]
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _title(groups: Sequence[Group]) -> str:
    methods = len({g.label for g in groups})
    tasks = sorted({g.task for g in groups})
    models = sorted({g.model for g in groups})
    runs = sum(len(g.runs) for g in groups)
    said = "1 method" if methods == 1 else f"{methods} methods"
    return f"{said} on {', '.join(tasks)} with {', '.join(models)}: {runs} runs"


def _latex(title: str, found: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """A document that compiles as it is, and whose tables may be copied."""
    from peft_smop.report.table import latex_text

    figures = "".join(
        "\\begin{figure}[htbp]\n\\centering\n"
        f"\\includegraphics[width=\\linewidth]{{figures/{picture.name}.pdf}}\n"
        f"\\caption{{{latex_text(picture.title)}.}}\n\\end{{figure}}\n\n"
        for picture in pictures
    )
    return (
        "\\documentclass{article}\n\\usepackage[margin=2cm]{geometry}\n"
        "\\usepackage{booktabs,xcolor,graphicx}\n\\begin{document}\n"
        f"\\section*{{{latex_text(title)}}}\n\n"
        + "\n".join(table.latex() for table in found)
        + "\n"
        + figures
        + "\\end{document}\n"
    )


def _html(title: str, found: Sequence[Table], pictures: Sequence[Picture]) -> str:
    figures = "".join(
        f'<figure id="{picture.name}"><img alt="{html.escape(picture.title)}"'
        f' src="data:image/svg+xml;base64,{base64.b64encode(picture.svg.encode()).decode()}">'
        f"<figcaption>{html.escape(picture.title)}</figcaption></figure>\n"
        for picture in pictures
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n"
        + "".join(table.html() for table in found)
        + figures
        + "</body></html>\n"
    )
