"""The one tree of exceptions that a user can cause.

The command line prints the sentence of an `SMoPError` and exits with code 2. Anything else that
escapes is a defect of this package and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class SMoPError(Exception):
    """Base of every error that has a remedy on the user's side; its text is one sentence."""


class ConfigError(SMoPError, ValueError):
    """An option, or a combination of options, that cannot work."""


class DataError(SMoPError, ValueError):
    """A data file that is missing or holds something unexpected."""

    @classmethod
    def at(
        cls, path: Path | str, line: int | None, problem: str, *, expected: str | None = None
    ) -> DataError:
        """Name the place, the value and the expectation in one sentence.

        Args:
            path: the file.
            line: the 1-based line, or None where the whole file is meant.
            problem: what is wrong, with the offending value in it.
            expected: what was expected instead.
        """
        place = f"{path}, line {line}" if line is not None else str(path)
        return cls(f"{place}: {problem}" + (f"; expected {expected}" if expected else ""))


class CheckpointError(SMoPError, RuntimeError):
    """A saved adapter that is missing, damaged, of another kind, or of another backbone."""


class RunError(SMoPError, RuntimeError):
    """A run that cannot start or go on."""


class RunInUseError(RunError):
    """A run on which another process is at work."""


class DivergedError(RunError):
    """A training whose loss or weights stopped being finite."""


class ExportError(SMoPError, RuntimeError):
    """A graph that cannot be made, or does not say what the model says."""


class PromptIgnoredError(SMoPError, RuntimeError):
    """A forward pass finished without the soft prompt having been seen by the backbone."""


def unknown(
    kind: str, name: str, known: Iterable[str], *, remedy: str | None = None
) -> ConfigError:
    """Build the error for a name outside a table, with the nearest names.

    Args:
        kind: what the name should have been, such as "task".
        name: what was given.
        known: every name that would have been right.
        remedy: what else would work.
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return ConfigError(f"unknown {kind} {name!r}; {hint}" + (f" {remedy}" if remedy else ""))


def shortened(text: str) -> str:
    """A text in one line, and the beginning of one that is long."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:299]}…"
