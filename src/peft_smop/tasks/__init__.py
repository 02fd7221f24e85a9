"""Text in, verbalizer out: SuperGLUE, the generated task, your own files, and their splits."""

from peft_smop.tasks.catalogue import (
    CATALOGUE,
    Entry,
    TaskData,
    check_task,
    define_task,
    is_own,
    load_task,
    task_names,
)
from peft_smop.tasks.examples import read_inputs, to_input
from peft_smop.tasks.reading import Broken, Row, Writing, is_null, parse_lines, read_each
from peft_smop.tasks.splits import PARTS, PRESETS, Preset, Split
from peft_smop.tasks.task import METRICS, Example, Task

__all__ = [
    "CATALOGUE",
    "METRICS",
    "PARTS",
    "PRESETS",
    "Broken",
    "Entry",
    "Example",
    "Preset",
    "Row",
    "Split",
    "Task",
    "TaskData",
    "Writing",
    "check_task",
    "define_task",
    "is_null",
    "is_own",
    "load_task",
    "parse_lines",
    "read_each",
    "read_inputs",
    "task_names",
    "to_input",
]
