"""One run and many runs: specifications, store, comparison."""

from peft_smop.lab.costing import Costing, costing, progress_steps
from peft_smop.lab.diagnosis import Finding, diagnose, figure
from peft_smop.lab.prepare import prepare, put
from peft_smop.lab.record import environment, predictions_as_rows, score_of
from peft_smop.lab.run import run, run_packed
from peft_smop.lab.signs import PromptScale, Signs, signs_of
from peft_smop.lab.spec import RunSpec
from peft_smop.lab.study import study
from peft_smop.lab.trained import PartOfTask, Trained, load_trained, part_of_task
from peft_smop.lab.variants import Variant, matched_controls, name_of, variant, variants

__all__ = [
    "Costing",
    "Finding",
    "PartOfTask",
    "PromptScale",
    "RunSpec",
    "Signs",
    "Trained",
    "Variant",
    "costing",
    "diagnose",
    "environment",
    "figure",
    "load_trained",
    "matched_controls",
    "name_of",
    "part_of_task",
    "predictions_as_rows",
    "prepare",
    "progress_steps",
    "put",
    "run",
    "run_packed",
    "score_of",
    "signs_of",
    "study",
    "variant",
    "variants",
]
