"""One run and many runs: specifications, store, comparison."""

from peft_smop.lab.run import environment, predictions_as_rows, prepare, put, run, score_as_dict
from peft_smop.lab.spec import RunSpec
from peft_smop.lab.store import RunDirectory, write_json, write_jsonl
from peft_smop.lab.trained import Trained, load_trained

__all__ = [
    "RunDirectory",
    "RunSpec",
    "Trained",
    "environment",
    "load_trained",
    "predictions_as_rows",
    "prepare",
    "put",
    "run",
    "score_as_dict",
    "write_json",
    "write_jsonl",
]
