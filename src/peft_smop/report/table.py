"""A table as values, and as Markdown, LaTeX, CSV, HTML and text for a terminal."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

GAP = 2
"""Spaces between the columns of a terminal's table."""
MISSING = "missing"
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"
"""LaTeX that makes a box as narrow as the line, if it is wider."""


class Tone(StrEnum):
    """Whose a figure is."""

    ours = "ours"
    paper = "paper"
    missing = "missing"


@dataclass(frozen=True)
class Cell:
    """What stands in one place."""

    text: str
    tone: Tone = Tone.ours

    @classmethod
    def of(cls, text: str | None) -> Cell:
        """A figure of ours, or the word that there is none."""
        return cls(MISSING, Tone.missing) if text is None else cls(text)


@dataclass(frozen=True)
class Table:
    """Rows under names of columns; the first column names the rows."""

    name: str
    """Of its file."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """As Markdown; the paper's figures in italics."""
        lines = [f"## {self.title}", "", _bars(self.columns)]
        lines.append(_bars(["---", *["---:"] * (len(self.columns) - 1)]))
        for row in self.rows:
            lines.append(_bars([_marked(cell) for cell in row]))
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes), ""])

    def latex(self) -> str:
        """As LaTeX with booktabs, graphicx and, for the paper's figures in grey, xcolor."""
        align = "l" + "r" * (len(self.columns) - 1)
        body = "\n".join(
            " & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in self.rows
        )
        notes = "".join(f" {latex_text(note)}." for note in self.notes)
        return (
            "\\begin{table}[htbp]\n\\centering\\small\n" + FITTED + "{%\n"
            f"\\begin{{tabular}}{{{align}}}\n\\toprule\n"
            + " & ".join(latex_text(column) for column in self.columns)
            + " \\\\\n\\midrule\n"
            + body
            + "\n\\bottomrule\n\\end{tabular}}\n"
            f"\\caption{{{latex_text(self.title)}.{notes}}}\n\\label{{tab:{self.name}}}\n\\end{{table}}\n"
        )

    def csv(self) -> str:
        """As CSV, the figures as they are printed."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([cell.text for cell in row] for row in self.rows)
        return text.getvalue()

    def html(self) -> str:
        """As a part of a page."""
        head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in self.columns)
        body = "".join(
            "<tr>"
            + f'<th scope="row">{html.escape(row[0].text)}</th>'
            + "".join(f'<td class="{c.tone}">{html.escape(c.text)}</td>' for c in row[1:])
            + "</tr>\n"
            for row in self.rows
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return (
            f'<section id="{self.name}"><h2>{html.escape(self.title)}</h2>\n'
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>'
            f"</table></div>\n<ul>{notes}</ul></section>\n"
        )

    def text(self, width: int) -> str:
        """As lines no wider than a terminal; columns that do not fit come in further blocks."""
        texts = [self.columns, *([cell.text for cell in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in texts) for i in range(len(self.columns))]
        widths[0] = min(widths[0], max(16, width // 2 - GAP))
        blocks: list[list[int]] = []
        for column in range(1, len(self.columns)):
            room = width - widths[0]
            taken = sum(GAP + widths[i] for i in blocks[-1]) if blocks else width
            if taken + GAP + widths[column] > room:
                blocks.append([])
            blocks[-1].append(column)
        lines = [_wrapped(self.title, width)]
        for block in blocks:
            for row in texts:
                first = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 1] + "…"
                rest = "".join(" " * GAP + row[i].rjust(widths[i]) for i in block)
                lines.append(f"{first.ljust(widths[0])}{rest}".rstrip())
            lines.append("")
        return "\n".join([*lines, *(_wrapped(note, width) for note in self.notes)])


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return textwrap.fill(text, width, subsequent_indent="  ")


def _bars(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _marked(cell: Cell) -> str:
    return f"*{cell.text}*" if cell.tone is Tone.paper and cell.text else cell.text


_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "×": r"$\times$",
    "<": r"$<$",
    ">": r"$>$",
    "²": r"$^2$",
    "·": r"$\cdot$",
    "∣": r"$\mid$",
    "…": r"\dots{}",
}


def latex_text(text: str) -> str:
    """A text with what LaTeX reads otherwise written so that it is read as it is."""
    return "".join(_SPECIAL.get(c, c) for c in text)


def _latex_cell(cell: Cell) -> str:
    text = latex_text(cell.text)
    if cell.tone is Tone.paper and text:
        return rf"\textcolor{{gray}}{{{text}}}"
    return rf"\textit{{{text}}}" if cell.tone is Tone.missing else text
