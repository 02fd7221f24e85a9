"""Bytes of a file as text, and what is said where they are not what they were taken for."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path

from peft_smop.errors import DataError

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LEGACY = "cp1252"
"""What Windows writes in Western Europe; Latin-1 with letters where that has control characters."""


def read_bytes(path: Path) -> bytes:
    """Read a whole file, or a pipe to its end.

    Raises:
        DataError: where there is no such file, or it cannot be read.
    """
    try:
        if path.is_dir():
            raise DataError.at(path, None, "is a directory", expected="a file")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError.at(path, None, "the file is missing", expected="a file here") from error
    except OSError as error:
        reason = error.strerror or "unknown reason"
        raise DataError.at(path, None, f"cannot be read: {reason.lower()}") from error


def is_pipe(path: Path) -> bool:
    """Whether a path is a pipe or a terminal, which gives its content once."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def decode(content: bytes, source: str, encoding: str | None = None) -> str:
    """Decode UTF-8, with or without a byte order mark, or what was said to be another encoding.

    Raises:
        DataError: naming the line of the first byte that does not fit, and what it looks like.
    """
    name = checked_encoding(encoding, source)
    if name == "utf-8":
        mark = next((name for mark, name in _MARKS if content.startswith(mark)), None)
        if mark is not None:
            raise DataError.at(
                source,
                1,
                f"begins with the mark of {mark.upper()}",
                expected=f"UTF-8, or encoding: {mark}",
            )
        name = "utf-8-sig"
    try:
        text = content.decode(name)
    except UnicodeDecodeError as error:
        # error.object and not content: the codec counts from behind the byte order mark.
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        said = "UTF-8" if name == "utf-8-sig" else name
        expected = said
        if said == "UTF-8" and _looks_legacy(content):
            expected = f"UTF-8, or encoding: {_LEGACY}, which is Latin-1 as Windows writes it"
        raise DataError.at(
            source, line, f"byte 0x{byte:02x} is not {said}", expected=expected
        ) from error
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise DataError.at(source, line, "holds a zero byte", expected="text")
    return text


def checked_encoding(encoding: str | None, source: str) -> str:
    """The codec's own name of an encoding.

    Raises:
        DataError: Python knows none of that name, or it is none of text.
    """
    if encoding is None:
        return "utf-8"
    try:
        found = codecs.lookup(encoding)
        "a".encode(found.name)  # base64 and others give no text
    except (LookupError, UnicodeError) as error:
        raise DataError.at(
            source, None, f"encoding {encoding!r} is unknown", expected="one such as utf-8, cp1252"
        ) from error
    return found.name


def _looks_legacy(content: bytes) -> bool:
    """Whether bytes that are not UTF-8 read as text of Western Europe."""
    try:
        text = content.decode(_LEGACY)
    except UnicodeDecodeError:
        return False
    foreign = [character for character in text if not character.isascii()]
    return bool(foreign) and sum(c.isalpha() for c in foreign) >= len(foreign) / 2
