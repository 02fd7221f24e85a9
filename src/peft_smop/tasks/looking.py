"""Look at a file that nobody has described, and propose the task's YAML."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_smop.errors import DataError
from peft_smop.tasks.decoding import decode, read_bytes
from peft_smop.tasks.reading import Row, Writing, is_null, listed, plain, read_rows, shown
from peft_smop.tasks.tables import DELIMITERS

LABEL_NAMES = ("label", "labels", "class", "category", "target", "queue", "topic", "intent", "y")
ID_NAMES = ("id", "idx", "nr", "number", "uuid", "key")
MOST_LABELS = 50
FEW_ROWS = 10
"""Rows of a class below which little can be learned or told of it."""
LONG_TEXT = 2000
"""Characters that are more than the default of 512 tokens."""


@dataclass(frozen=True)
class Look:
    """What a file looks like."""

    content: dict[str, Any]
    """The task's YAML."""
    rows: int
    counts: dict[str, int]
    """Rows of each label."""
    found: tuple[str, ...]
    """What was taken for what."""
    warnings: tuple[str, ...]


def look(
    path: Path, *, label: str | None = None, texts: Sequence[str] = (), name: str | None = None
) -> Look:
    """Find a file's encoding, delimiter, label and texts.

    Args:
        path: the file.
        label: the column with the label; guessed where not said.
        texts: the columns with the text; guessed where not said.
        name: of the task; the file's by default.

    Raises:
        DataError: the file cannot be read, or no column can be a label or a text.
    """
    writing = _writing(path)
    rows = read_rows(path, writing=writing)
    columns = list(dict.fromkeys(key for row in rows for key in row.fields))
    values = {
        column: [plain(v) for row in rows if not is_null(v := row.fields.get(column))]
        for column in columns
    }
    for said in [*texts, *([label] if label else [])]:
        if said not in columns:
            raise DataError.at(path, None, f"no column {said!r}", expected=f"of {listed(columns)}")
    label = label or _label(path, values)
    id_column = _id(rows, values, {label, *texts})
    chosen = list(texts) or _texts(path, values, {label, id_column})
    counts = Counter(value.strip() for value in values[label] if value.strip())
    empty = [c for c in chosen if sum(bool(v.strip()) for v in values[c]) < len(rows)]
    content: dict[str, Any] = {
        "name": name or path.stem,
        "template": f"{{{chosen[0]}}}"
        if len(chosen) == 1
        else " ".join(f"{column}: {{{column}}}" for column in chosen),
        "labels": {value: value for value in sorted(counts)},
        "data": path.name,
        "label": label,
    }
    if id_column is not None:
        content["id"] = id_column
    if empty and len(empty) < len(chosen):
        content["may_be_empty"] = empty
    for key in ("delimiter", "encoding"):
        if (said_so := getattr(writing, key)) is not None:
            content[key] = said_so
    return Look(
        content,
        len(rows),
        dict(counts),
        tuple(_found(writing, label, chosen, id_column, columns)),
        tuple(_warnings(rows, values, label, chosen, empty, counts)),
    )


def _writing(path: Path) -> Writing:
    """How a file is written, as far as its ending does not say it."""
    ending = path.suffix.lower()
    if ending not in (".csv", ".tsv", ".jsonl"):
        return Writing()
    content = read_bytes(path)
    encoding = None
    for candidate in (None, "utf-16", "cp1252"):
        if candidate == "utf-16" and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
            continue
        try:
            text = decode(content, str(path), candidate)
        except DataError:
            if candidate == "cp1252":
                raise
            continue
        encoding = candidate
        break
    if ending != ".csv":
        return Writing(encoding=encoding)
    head = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=head.count)
    return Writing(None if delimiter == "," or not head.count(delimiter) else delimiter, encoding)


def _label(path: Path, values: dict[str, list[str]]) -> str:
    """A column of a usual name, else the one with the fewest different values, each several times.

    Raises:
        DataError: there is none.
    """
    fit = {
        column: len(set(found))
        for column, found in values.items()
        if 2 <= len(set(found)) <= min(MOST_LABELS, len(found) // 2)
    }
    usual = [column for name in LABEL_NAMES for column in fit if column.strip().lower() == name]
    if usual:
        return usual[0]
    if not fit:
        raise DataError.at(
            path,
            None,
            f"no column of {listed(values)} has 2 to {MOST_LABELS} values that return",
            expected="a column of labels; say which by --label",
        )
    # among equals the last: labels mostly stand behind what they are of
    return min(reversed(list(fit)), key=lambda column: fit[column])


def _id(rows: list[Row], values: dict[str, list[str]], taken: set[str]) -> str | None:
    for column, found in values.items():
        usual = column.strip().lower() in ID_NAMES or column.strip().lower().endswith("_id")
        if usual and column not in taken and len(set(found)) == len(rows) == len(found):
            return column
    return None


def _texts(path: Path, values: dict[str, list[str]], taken: set[str | None]) -> list[str]:
    """The columns whose values are words and mostly differ.

    Raises:
        DataError: there is none.
    """
    chosen = [
        column
        for column, found in values.items()
        if column not in taken
        and not set(column) & set("{}!:")
        and found
        and len(set(found)) > len(found) / 4
        and statistics.mean(any(c.isalpha() for c in value) for value in found) > 0.5
        and statistics.mean(" " in value.strip() for value in found) > 0.3
    ]
    if not chosen:
        raise DataError.at(
            path, None, f"no column of {listed(values)} looks like text", expected="--text COLUMN"
        )
    return chosen


def _found(
    writing: Writing, label: str, texts: list[str], id_column: str | None, columns: list[str]
) -> list[str]:
    found = [f"label: {label}", f"text: {listed(texts)}"]
    if id_column is not None:
        found.append(f"id: {id_column}")
    if writing.delimiter is not None:
        found.append(f"delimiter: {DELIMITERS[writing.delimiter]}")
    if writing.encoding is not None:
        found.append(f"encoding: {writing.encoding}")
    unused = [column for column in columns if column not in {label, id_column, *texts}]
    if unused:
        found.append(f"not used: {listed(unused)}")
    return found


def _warnings(
    rows: list[Row],
    values: dict[str, list[str]],
    label: str,
    texts: list[str],
    empty: list[str],
    counts: Counter[str],
) -> list[str]:
    warnings = []
    unlabelled = len(rows) - sum(counts.values())
    if unlabelled:
        warnings.append(
            f"{unlabelled} rows have no {label}; training refuses them, so leave them out"
        )
    small = [f"{name} ({count})" for name, count in counts.items() if count < FEW_ROWS]
    if small:
        warnings.append(f"fewer than {FEW_ROWS} rows of {listed(small)}; gather more, or join them")
    alike = Counter(name.casefold() for name in counts)
    twins = [name for name in counts if alike[name.casefold()] > 1]
    if twins:
        warnings.append(f"labels that differ in capitals alone: {listed(twins)}; make them one")
    if all(name.lstrip("-").isdigit() for name in counts):
        warnings.append("labels are numbers; give each the word it means, as its verbalizer")
    if empty and len(empty) == len(texts):
        warnings.append(f"{listed(empty)} is empty in some rows; training refuses them")
    said = Counter(tuple(str(row.fields.get(column)) for column in texts) for row in rows)
    twice = sum(count - 1 for count in said.values())
    if twice:
        warnings.append(f"{twice} texts stand there again; splits may put them on both sides")
    long = sum(
        sum(len(str(row.fields.get(column) or "")) for column in texts) > LONG_TEXT for row in rows
    )
    if long:
        warnings.append(f"{long} texts may be longer than 512 tokens and be cut; see --max-length")
    odd = [column for column in values if set(column) & set("{}!:")]
    if odd:
        warnings.append(f"columns that no template can name: {listed([shown(c) for c in odd])}")
    return warnings


def relative(data: Path, yaml: Path) -> str:
    """The data file as its YAML, in another folder perhaps, names it."""
    return os.path.relpath(data.resolve(), yaml.resolve().parent)
