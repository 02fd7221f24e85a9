"""From rows to examples: every check on what a row holds is made here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from peft_smop.errors import DataError
from peft_smop.tasks.reading import (
    Broken,
    Row,
    Writing,
    is_null,
    listed,
    parse_jsonl,
    plain,
    read_rows,
    shown,
)
from peft_smop.tasks.task import Example, Task

_RENDERED = "text"  # the field of prediction input that holds an already rendered text
_MISSING = object()
_FEW_COLUMNS = 2
"""Lines of an ordinary text may look like rows of so few columns."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which fields hold what stands outside the template; None: the data have no such field."""

    label: str = "label"
    id: str | None = None
    group: str | None = None
    population: str | None = None

    def names(self) -> tuple[str, ...]:
        """The fields that every row must have."""
        named = (self.label, self.id, self.group, self.population)
        return tuple(name for name in named if name is not None)


def to_examples(rows: Iterable[Row], task: Task, columns: Columns) -> tuple[Example, ...]:
    """Check every row and render it.

    A row without an id of its own is known by its line.

    Raises:
        DataError: naming the first row with a missing, empty or wrongly typed field, an unknown
            label, or an id seen before.
    """
    rows = list(rows)
    examples = tuple(
        Example(
            # text and label first: what is wrong with them says more than a missing id
            text=_rendered(row, task),
            label=_label(row, task, columns.label),
            id=_name(row, columns.id) if columns.id else str(row.number),
            group=_name(row, columns.group) if columns.group else None,
            population=_name(row, columns.population) if columns.population else None,
        )
        for row in rows
    )
    _refuse_duplicates(rows, examples, columns.id)
    return examples


def read_inputs(
    task: Task, source: Path | str | IO[bytes] | IO[str], *, writing: Writing | None = None
) -> tuple[Example, ...]:
    """Read rows to predict: no labels needed, none used.

    Args:
        task: whose template the rows are rendered with.
        source: a file, or an open stream of JSONL such as `sys.stdin`. A row has the fields of the
            template, or else a field `text` that is rendered already. An `id` or `idx` is kept.
        writing: how a file is written, where its ending does not say it.

    Raises:
        DataError: naming the file, or "<stdin>", and the first line that cannot be used.
    """
    rows: list[Row] = []
    if isinstance(source, str | Path):
        rows = read_rows(Path(source), writing=writing)
    else:
        stream = getattr(source, "buffer", source)  # decoded by us, whatever the locale says
        content = stream.read()
        name = str(getattr(source, "name", "<stdin>"))
        for row in parse_jsonl(content.encode() if isinstance(content, str) else content, name):
            if isinstance(row, Broken):
                raise row.error
            rows.append(row)
        if not rows:
            raise DataError.at(name, None, "no rows", expected="one JSON object a line")
    examples = tuple(to_input(row, task) for row in rows)
    _refuse_duplicates(rows, examples, "id")
    return examples


def to_input(row: Row, task: Task) -> Example:
    """Check a row to predict and render it; see `read_inputs`.

    Raises:
        DataError: a field is missing, empty or wrongly typed.
    """
    if row.spans > 1 and len(row.within) == row.spans and len(row.fields) > _FEW_COLUMNS:
        raise _open_quote(row)
    id_field = next((name for name in ("id", "idx") if name in row.fields), None)
    if _RENDERED in row.fields and not all(field in row.fields for field in task.fields):
        text = _text(row, _RENDERED)
    else:
        text = _rendered(row, task, or_else=f", or {_RENDERED!r} alone")
    return Example(_name(row, id_field) if id_field else str(row.number), text, None)


def _rendered(row: Row, task: Task, or_else: str = "") -> str:
    for field in task.fields:
        if field not in row.fields:
            raise row.error(
                f"no field {field!r} beside {listed(row.fields)}",
                expected=f"{listed(task.fields)}{or_else}",
            )
    return task.render(
        {field: _text(row, field, field in task.may_be_empty) for field in task.fields}
    )


def _text(row: Row, field: str, may_be_empty: bool = False) -> str:
    value = row.fields[field]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return plain(value)
    if may_be_empty and is_null(value):
        return ""
    if not isinstance(value, str):
        raise row.error(f"field {field!r} is {shown(value)}", expected="a text")
    if not may_be_empty and not value.strip():
        raise row.error(f"field {field!r} is empty", expected="a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # JSON can write one half of a surrogate pair
            raise row.error(
                f"field {field!r} holds {shown(value[error.start])}", expected="Unicode text"
            ) from error
    return plain(value)


def _name(row: Row, field: str) -> str:
    value = row.fields.get(field, _MISSING)
    if value is _MISSING:
        raise row.error(f"no field {field!r} beside {listed(row.fields)}", expected="it")
    if isinstance(value, bool):
        raise row.error(f"field {field!r} is {shown(value)}", expected="a text or a number")
    return _text(row, field)


def _label(row: Row, task: Task, field: str) -> int:
    value = row.fields.get(field, _MISSING)
    known = f"one of {listed(task.labels)}"
    if value is _MISSING:
        raise row.error(f"no field {field!r} beside {listed(row.fields)}", expected=known)
    if is_null(value):
        raise row.error("has no label", expected=known)
    if isinstance(value, list | tuple | dict):
        raise row.error(f"label {shown(value)} is not one but a list", expected=known)
    index = task.label_index(value)
    if index is None:
        raise row.error(f"label {shown(value)}", expected=known)
    # the first or the last of them carries the row's own label
    if sum(task.label_index(line[field]) is not None for line in row.within) > 1:
        raise _open_quote(row)
    return index


def _open_quote(row: Row) -> DataError:
    return row.error(
        "a value in quotes runs over lines that are rows themselves, so a quote is not closed",
        expected="quotes within a value doubled, or quoting: none",
    )


def _refuse_duplicates(
    rows: Iterable[Row], examples: Iterable[Example], id_field: str | None
) -> None:
    first_seen: dict[str, Row] = {}
    for row, example in zip(rows, examples, strict=True):
        earlier = first_seen.setdefault(example.id, row)
        if earlier is not row:
            where = "line" if row.has_lines else "row"
            raise row.error(
                f"{id_field} {shown(example.id)} was already that of {where} {earlier.number}",
                expected="every id once",
            )
