"""Files that are whole or not there, and what is said of those that are neither."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from peft_smop.errors import CheckpointError, RunError, SMoPError

DRAFT = ".draft"
"""How the names of files end that are not written to their end; whoever finds one may delete it."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence that a place cannot be written to, whoever writes there.

    Raises:
        RunError: the disk is full, the place forbidden, or gone.
    """
    try:
        yield
    except SMoPError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"{path} cannot be written: {reason}") from error
    except (SafetensorError, RuntimeError) as error:
        # what safetensors and torch make of a failed write
        reason = str(error).strip().split("\n")[0][:200]
        raise RunError(f"{path} cannot be written: {reason}") from error


def check_vacant(path: Path) -> None:
    """Refuse a place for a new directory in which something is.

    Raises:
        RunError: something is there, or nobody may look.
    """
    with writing(path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(f"{path} exists and is not an empty directory; give another -o")


@contextmanager
def draft(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file that takes its place when it is whole, and leaves no trace where it is not.

    Args:
        path: its place, in a directory that exists.
        mode: of writing, "w" for UTF-8 with line ends as they are given, or "wb".

    Raises:
        RunError: the place cannot be written to.
    """
    binary = "b" in mode
    made = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{DRAFT}")
    try:
        with made.open(
            mode, encoding=None if binary else "utf-8", newline=None if binary else ""
        ) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)
        sync(path.parent)
    except OSError as error:
        # not by `writing`: what fails here may be whatever makes the rows
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            made.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that no reader, and no crash, ever sees half of it.

    Raises:
        RunError: the place cannot be written to.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with draft(path) as file:
        file.write(text)


def sync(directory: Path) -> None:
    """Let the names in a directory outlive a power cut, where the system can."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON for people and programs, whole."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, whole."""
    write_whole(path, "".join(line(row) for row in rows))


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON object to a file that grows.

    Raises:
        RunError: the place cannot be written to.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # one write, so that lines of several processes do not mix
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(handle).st_size
            # half a line that a full disk left behind must not spoil this one
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            said = (b"\n" if torn else b"") + line(row).encode()
            if os.write(handle, said) < len(said):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(handle)


def line(row: Mapping[str, Any]) -> str:
    """A row of JSONL; JSON has no word for what is not a number, so that is null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
    return json.dumps(finite, ensure_ascii=False) + "\n"


def read_text(path: Path, what: str) -> str:
    """Read a file that a run wrote.

    Args:
        path: the file.
        what: what it should be, for people.

    Raises:
        CheckpointError: it is missing, cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; expected {what}") from error
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read as {what}: {error.strerror or error}"
        ) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} cannot be read as {what}: byte {error.start} is no UTF-8"
        ) from error


def read_object(path: Path, what: str) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        CheckpointError: there is none.
    """
    return _object(read_text(path, what), f"{path}", what)


def read_lines(path: Path, what: str, *, whole: bool = True) -> list[dict[str, Any]]:
    """Read one JSON object a line.

    Args:
        path: the file.
        what: what it should be, for people.
        whole: whether every line must be one; else those that are none are passed over.

    Raises:
        CheckpointError: a line is none.
    """
    found = []
    # not `splitlines`, which also ends a line where a text has a separator of its own
    for number, row in enumerate(read_text(path, what).split("\n"), start=1):
        try:
            if row.strip():
                found.append(_object(row, f"{path}, line {number}", what))
        except CheckpointError:
            if whole:
                raise
    return found


def _object(text: str, place: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        within = f", line {error.lineno}" if error.lineno > 1 else ""
        raise CheckpointError(
            f"{place}{within} cannot be read as {what}: not JSON ({error.msg})"
        ) from error
    except (RecursionError, ValueError) as error:
        raise CheckpointError(f"{place} cannot be read as {what}: no usable JSON") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{place} cannot be read as {what}: expected a JSON object")
    return found


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content.

    Raises:
        CheckpointError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
