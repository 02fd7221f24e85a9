"""What is asked about, as users give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from peft_smop.errors import ConfigError
from peft_smop.tasks import Example, Row, Task, to_input

Input: TypeAlias = str | Mapping[str, object]
"""A text, or the fields of the task's template by name."""


def example_of(row: Input, task: Task, *, place: str = "input") -> Example:
    """Check an input and render it by a task's template.

    A text is the field of a template that has one, and else the rendered text itself.

    Args:
        row: the input.
        task: with the template.
        place: what an error calls the input.

    Raises:
        DataError: a field is missing, empty or of a wrong type.
        ConfigError: it is neither a text nor fields.
    """
    if isinstance(row, str):
        row = {task.fields[0] if len(task.fields) == 1 else "text": row}
    elif not isinstance(row, Mapping):
        raise ConfigError(f"{place} is a {type(row).__name__}; expected a text, or fields by name")
    return to_input(Row(row, place, 1, has_lines=False), task)
