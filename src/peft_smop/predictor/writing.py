"""Rows into JSONL, CSV, TSV and Parquet files: whole or not at all, and never over what is read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peft_smop.errors import ConfigError, RunError
from peft_smop.results import draft

ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet")


def check_output(output: Path, *read: Path) -> None:
    """Refuse a file that cannot be written, or must not.

    Args:
        output: where rows are to go.
        read: what is read.

    Raises:
        ConfigError: the ending is unknown.
        RunError: it is a directory, or what is read, by whatever name.
    """
    if output.suffix.lower() not in ENDINGS:
        raise ConfigError(f"{output}: the ending must be one of {', '.join(ENDINGS)}")
    if output.is_dir():
        raise RunError(f"{output} is a directory; expected a file")
    if not output.absolute().parent.is_dir():
        raise RunError(f"{output.parent} is not a directory; make it first")
    for path in read:
        if output.exists() and path.exists() and output.samefile(path):
            raise RunError(f"{output} is what is read; write to another file")


def write_rows(output: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows by the file's ending.

    Raises:
        RunError: the place cannot be written to.
        ConfigError: Parquet is wanted and pyarrow is not installed.
    """
    ending = output.suffix.lower()
    if ending == ".jsonl":
        with draft(output) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    elif ending == ".parquet":
        _write_parquet(output, list(rows))
    else:
        held = list(rows)
        with draft(output) as file:
            columns = list(dict.fromkeys(key for row in held for key in row))
            writer = csv.DictWriter(
                file, columns, delimiter="\t" if ending == ".tsv" else ",", lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows({key: _cell(value) for key, value in row.items()} for row in held)


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else value


def _write_parquet(output: Path, rows: list[Mapping[str, Any]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            f"{output}: writing Parquet needs pyarrow; pip install 'peft-smop[data]'"
        ) from error
    columns = list(dict.fromkeys(key for row in rows for key in row))
    try:
        table = pa.table({key: pa.array([row.get(key) for row in rows]) for key in columns})
    except pa.ArrowException as error:
        raise RunError(f"{output}: a column holds values of several types ({error})") from error
    with draft(output, "wb") as file:
        pq.write_table(table, file)
