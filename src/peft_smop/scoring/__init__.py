"""What a model says of a task's examples, and how good that is."""

from peft_smop.scoring.certificate import Certificate, certificate_of, certify
from peft_smop.scoring.evaluation import (
    DEAD_LOAD,
    Asked,
    Evaluation,
    Prediction,
    evaluate,
    predict,
    predict_rows,
)
from peft_smop.scoring.formulation import Features, Formulation, to_device, told
from peft_smop.scoring.kinds import FORMULATIONS, formulate
from peft_smop.scoring.metrics import METRICS, Score, compute, majority_label, score
from peft_smop.scoring.under_prompts import (
    UnderPrompts,
    answer_under_prompts,
    better_router,
    worth_keeping,
)

__all__ = [
    "DEAD_LOAD",
    "FORMULATIONS",
    "METRICS",
    "Asked",
    "Certificate",
    "Evaluation",
    "Features",
    "Formulation",
    "Prediction",
    "Score",
    "UnderPrompts",
    "answer_under_prompts",
    "better_router",
    "certificate_of",
    "certify",
    "compute",
    "evaluate",
    "formulate",
    "majority_label",
    "predict",
    "predict_rows",
    "score",
    "to_device",
    "told",
    "worth_keeping",
]
