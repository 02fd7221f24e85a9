"""What a run leaves: its files, their one schema, and whether they are as they were written."""

from peft_smop.results.files import (
    append_line,
    check_vacant,
    draft,
    read_lines,
    read_object,
    read_text,
    sha256_of,
    write_json,
    write_jsonl,
    write_whole,
    writing,
)
from peft_smop.results.lock import locked
from peft_smop.results.run_directory import RunDirectory
from peft_smop.results.schema import (
    Chosen,
    Parameters,
    Points,
    RoutingWorth,
    RunCost,
    RunResult,
    TestScore,
    TrainingTold,
)

__all__ = [
    "Chosen",
    "Parameters",
    "Points",
    "RoutingWorth",
    "RunCost",
    "RunDirectory",
    "RunResult",
    "TestScore",
    "TrainingTold",
    "append_line",
    "check_vacant",
    "draft",
    "locked",
    "read_lines",
    "read_object",
    "read_text",
    "sha256_of",
    "write_json",
    "write_jsonl",
    "write_whole",
    "writing",
]
