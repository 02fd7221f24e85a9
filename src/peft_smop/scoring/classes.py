"""Class by class: how many were found, how many of those were right, what was taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support


@dataclass(frozen=True)
class ClassScore:
    """One label."""

    label: str
    precision: float | None
    """Of those that were given this label, the share that has it; None: none was given it."""
    recall: float | None
    """Of those that have it, the share that was given it; None: none has it."""
    f1: float
    examples: int
    """How many have it."""
    taken_for: tuple[int, ...]
    """How many of those were given each label, and last how many were given none."""


def class_scores(
    truth: Sequence[int], predicted: Sequence[int | None], labels: Sequence[str]
) -> list[ClassScore]:
    """Score every label.

    Args:
        truth: the true label of every example.
        predicted: the predicted one; None: none was given.
        labels: the names.
    """
    none = len(labels)
    given = [none if label is None else label for label in predicted]
    kinds = range(none)
    precision, recall, f1, examples = precision_recall_fscore_support(
        truth, given, labels=kinds, zero_division=np.nan
    )
    table = confusion_matrix(truth, given, labels=range(none + 1))
    return [
        ClassScore(
            label,
            precision=_known(precision[j]),
            recall=_known(recall[j]),
            f1=_known(f1[j]) or 0.0,
            examples=int(examples[j]),
            taken_for=tuple(int(count) for count in table[j]),
        )
        for j, label in enumerate(labels)
    ]


def _known(share: float) -> float | None:
    return None if np.isnan(share) else float(share)
