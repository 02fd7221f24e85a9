"""Rows out of JSONL, CSV and Parquet files, each knowing where it stands."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from peft_smop.errors import ConfigError, DataError

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of one row and its place.

    Attributes:
        fields: name to value, as the format gives it.
        source: the file, or "<stdin>".
        number: the 1-based line; where the format has no lines, the 1-based row.
        has_lines: whether `number` is a line.
    """

    fields: Mapping[str, object]
    source: str
    number: int
    has_lines: bool = True

    def error(self, problem: str, *, expected: str | None = None) -> DataError:
        """Build the error that names this row."""
        if self.has_lines:
            return DataError.at(self.source, self.number, problem, expected=expected)
        return DataError.at(f"{self.source}, row {self.number}", None, problem, expected=expected)


def shown(value: object) -> str:
    """Write a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def listed(names: Collection[str]) -> str:
    """Write names for a message."""
    return ", ".join(names) if names else "nothing"


def read_rows(path: Path, *, columns: Collection[str] = ()) -> list[Row]:
    """Read a file by its ending.

    Args:
        path: a `.jsonl`, `.csv`, `.tsv` or `.parquet` file.
        columns: what a table's head must name. JSONL has no head; its rows are checked one by one.

    Raises:
        DataError: where the file is missing, empty, or not what its ending says.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError.at(
            path, None, f"the ending {path.suffix!r} is unknown", expected=listed(list(_READERS))
        )
    rows = reader(read_bytes(path), str(path), columns)
    if not rows:
        raise DataError.at(path, None, "the file holds no rows", expected="at least one")
    return rows


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        DataError: where there is no such file, or it cannot be read.
    """
    if not path.exists():
        raise DataError.at(path, None, "the file is missing", expected="a file here")
    if path.is_dir():
        raise DataError.at(path, None, "is a directory", expected="a file")
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise DataError.at(path, None, f"cannot be read: {reason.lower()}") from error


def decode(content: bytes, source: str) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        DataError: naming the line of the first byte that is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.object and not content: the codec counts from behind the byte order mark.
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise DataError.at(source, line, f"byte 0x{byte:02x} is not UTF-8", expected="UTF-8") from (
            error
        )


def parse_jsonl(content: bytes, source: str, columns: Collection[str] = ()) -> list[Row]:
    """Read one JSON object a line; blank lines are passed over.

    Raises:
        DataError: naming the first line that is anything else.
    """
    rows = []
    # Not splitlines(): it also cuts at U+2028 and others, which JSON strings may hold.
    for number, line in enumerate(decode(content, source).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError.at(
                source,
                number,
                f"broken JSON at column {error.colno} ({error.msg.lower()}): {shown(line.strip())}",
                expected="one JSON object a line",
            ) from error
        except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
            raise DataError.at(
                source, number, f"unreadable JSON: {shown(line)}", expected="one JSON object a line"
            ) from error
        if not isinstance(value, dict):
            raise DataError.at(source, number, f"{shown(value)}", expected="a JSON object")
        rows.append(Row(value, source, number))
    return rows


def _parse_csv(
    content: bytes, source: str, columns: Collection[str], *, delimiter: str = ","
) -> list[Row]:
    lines = _csv_lines(decode(content, source), source, delimiter)
    number, head = next(lines, (1, []))
    if not head:
        return []
    twice = next((name for name in head if head.count(name) > 1), None)
    if twice is not None:
        raise DataError.at(source, number, f"column {twice!r} twice", expected="each column once")
    _require(columns, head, source, number)
    rows = []
    for number, values in lines:
        if len(values) != len(head):
            raise DataError.at(
                source,
                number,
                f"{len(values)} values: {shown(delimiter.join(values))}",
                expected=f"{len(head)}, one for each of {listed(head)}",
            )
        rows.append(Row(dict(zip(head, values, strict=True)), source, number))
    return rows


def _csv_lines(text: str, source: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line on which each record begins, and its values; blank lines are passed over."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        begin = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError.at(source, begin, f"broken CSV ({error})", expected="CSV") from error
        if values:
            yield begin, values


def _parse_tsv(content: bytes, source: str, columns: Collection[str]) -> list[Row]:
    return _parse_csv(content, source, columns, delimiter="\t")


def _parse_parquet(content: bytes, source: str, columns: Collection[str]) -> list[Row]:
    if not content:
        return []
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            f"{source}: reading Parquet needs pyarrow; pip install 'peft-smop[data]'"
        ) from error
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise DataError.at(source, None, "is not Parquet", expected="a Parquet file") from error
    _require(columns, table.column_names, source, None)
    return [
        Row(fields, source, number, has_lines=False)
        for number, fields in enumerate(table.to_pylist(), start=1)
    ]


def _require(
    columns: Collection[str], head: Collection[str], source: str, line: int | None
) -> None:
    missing = [column for column in columns if column not in head]
    if missing:
        raise DataError.at(
            source, line, f"no column {missing[0]!r}", expected=f"it beside {listed(head)}"
        )


_READERS: dict[str, Callable[[bytes, str, Collection[str]], list[Row]]] = {
    ".jsonl": parse_jsonl,
    ".csv": _parse_csv,
    ".tsv": _parse_tsv,
    ".parquet": _parse_parquet,
}
