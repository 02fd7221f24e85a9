"""Class by class: how many were found, how many of those were right, what was taken for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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
    m = len(labels)
    counts = [[0] * (m + 1) for _ in labels]
    for true, given in zip(truth, predicted, strict=True):
        counts[true][m if given is None else given] += 1
    found = []
    for j, label in enumerate(labels):
        right, own = counts[j][j], sum(counts[j])
        given_it = sum(row[j] for row in counts)
        either = own + given_it
        found.append(
            ClassScore(
                label,
                right / given_it if given_it else None,
                right / own if own else None,
                2 * right / either if either else 0.0,
                own,
                tuple(counts[j]),
            )
        )
    return found
