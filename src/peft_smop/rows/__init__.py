"""Rows: what a tuner needs to give each its own adapter, and what is read of each."""

from peft_smop.rows.adapters import (
    BASE,
    RowAdapters,
    by_adapter,
    check_adapter_names,
    check_new_name,
    on_device,
)
from peft_smop.rows.answers import IGNORED_LABEL, answers_only, verdicts
from peft_smop.rows.calls import Call, begin, calling, current, end
from peft_smop.rows.heads import follow_rows
from peft_smop.rows.lengths import cut
from peft_smop.rows.tuner import RowTuner, rows_given

__all__ = [
    "BASE",
    "IGNORED_LABEL",
    "Call",
    "RowAdapters",
    "RowTuner",
    "answers_only",
    "begin",
    "by_adapter",
    "calling",
    "check_adapter_names",
    "check_new_name",
    "current",
    "cut",
    "end",
    "follow_rows",
    "on_device",
    "rows_given",
    "verdicts",
]
