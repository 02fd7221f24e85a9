"""CSV and TSV, as people's programs write them: records with the line on which each begins."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from peft_smop.errors import DataError

LONGEST_FIELD = 2**27
"""Characters of one field; Python's own limit, 131,072, is less than some texts have."""
DELIMITERS = {",": "','", ";": "';'", "\t": "a tab", "|": "'|'"}
Quoting = Literal["double", "none"]

Record = tuple[int, list[str], tuple[list[str], ...]]
"""The line on which a record begins, its values, and its lines as records of their own."""


@dataclass(frozen=True)
class Dialect:
    """How the values of a table are written.

    Attributes:
        delimiter: between values.
        quoting: "double": a value may stand in double quotes, which are doubled within; "none": a
            quote is a character like any other.
    """

    delimiter: str = ","
    quoting: Quoting = "double"


def records(text: str, source: str, dialect: Dialect) -> Iterator[Record]:
    """Yield the records; blank lines are passed over.

    Raises:
        DataError: a quote is not closed, or something stands behind one that is.
    """
    csv.field_size_limit(LONGEST_FIELD)
    lines = text.split("\n")  # as the reader counts them: \r\n ends in \n
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=dialect.delimiter,
        quoting=csv.QUOTE_NONE if dialect.quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    while True:
        begin = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError.at(source, begin, f"broken CSV ({error})", expected="CSV") from error
        within: tuple[list[str], ...] = ()
        if reader.line_num > begin:
            physical = lines[begin - 1 : reader.line_num]
            within = tuple(line.rstrip("\r").split(dialect.delimiter) for line in physical)
        if values and not (len(values) == 1 and not values[0].strip()):
            yield begin, values, within


def check_head(
    head: list[str], source: str, line: int, dialect: Dialect, columns: Collection[str]
) -> list[str]:
    """The names of a table's columns, without those at its end that have none.

    Raises:
        DataError: a name is missing or stands twice, or the head is written with another delimiter.
    """
    head = [name.strip() for name in head]
    while head and not head[-1]:
        head.pop()
    if len(head) < 2:
        whole = head[0] if head else ""
        other = max(DELIMITERS, key=whole.count)
        if other != dialect.delimiter and whole.count(other):
            raise DataError.at(
                source,
                line,
                f"one column, {whole[:60]!r}, whose name holds {DELIMITERS[other]}",
                expected=f"{DELIMITERS.get(dialect.delimiter, repr(dialect.delimiter))} between"
                f" columns, or delimiter: {other!r}",
            )
    if "" in head:
        raise DataError.at(
            source, line, f"column {head.index('') + 1} has no name", expected="a name for each"
        )
    check_columns(head, source, line, columns)
    return head


def listed(names: Collection[str]) -> str:
    """Write names for a message."""
    return ", ".join(names) if names else "nothing"


def check_columns(
    names: list[str], source: str, line: int | None, columns: Collection[str]
) -> None:
    """Refuse a table that has a column twice, or not at all.

    Raises:
        DataError: with the column.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError.at(source, line, f"column {twice!r} twice", expected="each column once")
    missing = [column for column in columns if column not in names]
    if missing:
        raise DataError.at(
            source, line, f"no column {missing[0]!r}", expected=f"it beside {listed(names)}"
        )
