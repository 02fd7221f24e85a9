"""Rows out of JSONL, CSV and Parquet files, each knowing where it stands."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_smop.errors import ConfigError, DataError
from peft_smop.tasks.decoding import decode, is_pipe, read_bytes
from peft_smop.tasks.tables import (
    Dialect,
    Quoting,
    check_columns,
    check_head,
    listed,
    records,
)

_SHOWN_CHARACTERS = 60
_WHOLE = re.compile(r"[+-]?\d+\.0+")


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of one row and its place.

    Attributes:
        fields: name to value, as the format gives it.
        source: the file, or "<stdin>".
        number: the 1-based line; where the format has no lines, the 1-based row.
        has_lines: whether `number` is a line.
        spans: how many lines it runs over, where a quoted value holds line ends.
        within: those of them that would be rows of their own.
    """

    fields: Mapping[str, object]
    source: str
    number: int
    has_lines: bool = True
    spans: int = 1
    within: tuple[Mapping[str, str], ...] = ()

    def error(self, problem: str, *, expected: str | None = None) -> DataError:
        """Build the error that names this row."""
        if self.has_lines:
            return DataError.at(self.source, self.number, problem, expected=expected)
        return DataError.at(f"{self.source}, row {self.number}", None, problem, expected=expected)


@dataclass(frozen=True)
class Broken:
    """A line that is no row, and why."""

    error: DataError
    number: int
    content: str


@dataclass(frozen=True)
class Writing:
    """How a file is written, where its ending does not say it.

    Attributes:
        delimiter: of CSV and TSV; a comma, a tab.
        encoding: a name that Python knows; UTF-8.
        quoting: of CSV and TSV; CSV may quote values, TSV does not.
    """

    delimiter: str | None = None
    encoding: str | None = None
    quoting: Quoting | None = None

    def dialect(self, ending: str) -> Dialect:
        """How a table of this ending is written."""
        own = Dialect("\t", "none") if ending == ".tsv" else Dialect()
        return Dialect(self.delimiter or own.delimiter, self.quoting or own.quoting)


def shown(value: object) -> str:
    """Write a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def is_null(value: object) -> bool:
    """Whether a value says that there is none: JSON's null, and NaN, which pandas makes of it."""
    return value is None or (isinstance(value, float) and value != value)


def plain(value: object) -> str:
    """A value as text, the same whatever the file type: 1, 1.0 and "1.0" are "1", NFC is used.

    JSON writes 1, pandas writes 1.0 beside a missing value, CSV and Parquet keep what they got.
    """
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if text.isascii():
        stripped = text.strip()
        return stripped.partition(".")[0] if _WHOLE.fullmatch(stripped) else text
    return unicodedata.normalize("NFC", text)


def read_rows(
    path: Path, *, columns: Collection[str] = (), writing: Writing | None = None
) -> list[Row]:
    """Read a file by its ending.

    Args:
        path: a `.jsonl`, `.csv`, `.tsv` or `.parquet` file; a pipe of another name holds JSONL.
        columns: what a table's head must name. JSONL has no head; its rows are checked one by one.
        writing: how it is written, where the ending does not say it.

    Raises:
        DataError: where the file is missing, empty, or not what its ending says.
    """
    rows = []
    for row in read_each(path, columns=columns, writing=writing):
        if isinstance(row, Broken):
            raise row.error
        rows.append(row)
    return rows


def read_each(
    path: Path, *, columns: Collection[str] = (), writing: Writing | None = None
) -> list[Row | Broken]:
    """Read a file by its ending, with the lines that are no rows in their places.

    Raises:
        DataError: as for `read_rows`, where the file as a whole cannot be read.
    """
    ending = path.suffix.lower()
    if ending not in _READERS and is_pipe(path):
        ending = ".jsonl"
    reader = _READERS.get(ending)
    if reader is None:
        raise DataError.at(
            path, None, f"the ending {path.suffix!r} is unknown", expected=listed(list(_READERS))
        )
    rows = list(reader(read_bytes(path), str(path), columns, writing or Writing()))
    if not rows:
        raise DataError.at(path, None, "the file holds no rows", expected="at least one")
    return rows


def parse_jsonl(
    content: bytes, source: str, columns: Collection[str] = (), writing: Writing | None = None
) -> Iterator[Row | Broken]:
    """Read one JSON object a line; blank lines are passed over.

    Raises:
        DataError: the content is no text.
    """
    text = decode(content, source, writing.encoding if writing else None)
    # Not splitlines(): it also cuts at U+2028 and others, which JSON strings may hold.
    return parse_lines(text.split("\n"), source)


def parse_lines(lines: Iterable[str], source: str) -> Iterator[Row | Broken]:
    """Read lines of JSONL as they come."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield Row(_object(line, source, number), source, number)
            except DataError as error:
                yield Broken(error, number, line)


def _object(line: str, source: str, number: int) -> dict[str, object]:
    """One line's JSON object.

    Raises:
        DataError: it is anything else, or says a key twice.
    """
    try:
        value = json.loads(line, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise DataError.at(
            source,
            number,
            f"broken JSON at column {error.colno} ({error.msg.lower()}): {shown(line.strip())}",
            expected="one JSON object a line",
        ) from error
    except _KeyTwiceError as error:
        raise DataError.at(source, number, f"key {error} twice", expected="it once") from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
        raise DataError.at(
            source, number, f"unreadable JSON: {shown(line)}", expected="one JSON object a line"
        ) from error
    if not isinstance(value, dict):
        raise DataError.at(source, number, f"{shown(value)}", expected="a JSON object")
    return value


class _KeyTwiceError(Exception):
    """An object says a key twice; Python would take the last."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise _KeyTwiceError(shown(key))
        found[key] = value
    return found


def _parse_table(ending: str) -> Callable[..., Iterator[Row | Broken]]:
    def parse(
        content: bytes, source: str, columns: Collection[str], writing: Writing
    ) -> Iterator[Row | Broken]:
        dialect = writing.dialect(ending)
        found = records(decode(content, source, writing.encoding), source, dialect)
        number, head, _ = next(found, (1, [], ()))
        if not head:
            return
        head = check_head(head, source, number, dialect, columns)
        for number, values, within in found:
            while len(values) > len(head) and not values[-1].strip():
                values.pop()
            if len(values) != len(head):
                written = dialect.delimiter.join(values)
                problem = DataError.at(
                    source,
                    number,
                    f"{len(values)} values: {shown(written)}",
                    expected=f"{len(head)}, one for each of {listed(head)}",
                )
                yield Broken(problem, number, written)
                continue
            own = tuple(dict(zip(head, w, strict=True)) for w in within if len(w) == len(head))
            yield Row(
                dict(zip(head, values, strict=True)),
                source,
                number,
                spans=max(1, len(within)),
                within=own,
            )

    return parse


def _parse_parquet(
    content: bytes, source: str, columns: Collection[str], writing: Writing
) -> Iterator[Row | Broken]:
    if not content:
        return iter(())
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            f"{source}: reading Parquet needs pyarrow; pip install 'peft-smop[data]'"
        ) from error
    try:
        table: Any = pq.read_table(pa.BufferReader(content))
        check_columns(list(table.column_names), source, None, columns)
        values = table.to_pylist()
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError.at(source, None, "is not Parquet", expected="a Parquet file") from error
    return (Row(fields, source, number, has_lines=False) for number, fields in enumerate(values, 1))


_READERS: dict[str, Callable[..., Iterator[Row | Broken]]] = {
    ".jsonl": parse_jsonl,
    ".csv": _parse_table(".csv"),
    ".tsv": _parse_table(".tsv"),
    ".parquet": _parse_parquet,
}
