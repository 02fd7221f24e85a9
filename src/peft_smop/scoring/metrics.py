"""Scores, beside what a constant answer reaches and the interval that chance leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score

Labels = NDArray[np.int64]


def _accuracy(truth: Labels, predicted: Labels, labels: int) -> float:
    return float(accuracy_score(truth, predicted))


def _f1(truth: Labels, predicted: Labels, labels: int) -> float:
    """Binary F1 of the last label, as SuperGLUE defines F1a (all answer options together)."""
    return float(f1_score(truth, predicted, pos_label=labels - 1, zero_division=0.0))


def _macro_f1(truth: Labels, predicted: Labels, labels: int) -> float:
    return float(
        f1_score(truth, predicted, labels=range(labels), average="macro", zero_division=0.0)
    )


METRICS: dict[str, Callable[[Labels, Labels, int], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
}


@dataclass(frozen=True)
class Score:
    """One score in per cent, and what it takes to read it."""

    metric: str
    value: float
    low: float
    """Lower end of the 95 % bootstrap interval over examples."""
    high: float
    majority: float
    """What answering the training data's most common label everywhere would score."""
    examples: int
    points_per_example: float
    """How much one example moves an accuracy."""
    others: dict[str, float]
    """The other metrics, in per cent."""


def score(
    metric: str,
    truth: Sequence[int],
    predicted: Sequence[int],
    *,
    labels: int,
    majority_label: int,
    seed: int = 0,
    resamples: int = 1000,
) -> Score:
    """Score predictions.

    Args:
        metric: a key of `METRICS`.
        truth: the true label of every example.
        predicted: the predicted one.
        labels: how many labels the task has.
        majority_label: the most common label of the training data.
        seed: of the bootstrap.
        resamples: bootstrap samples of the examples, with replacement; 0 leaves the interval NaN.
    """
    y, z = np.asarray(truth), np.asarray(predicted)
    compute = METRICS[metric]
    generator = np.random.default_rng(seed)
    draws = [
        compute(y[i], z[i], labels)
        for i in (generator.integers(0, len(y), len(y)) for _ in range(resamples))
    ]
    low, high = np.percentile(draws, [2.5, 97.5]) if draws else (float("nan"), float("nan"))
    return Score(
        metric=metric,
        value=100 * compute(y, z, labels),
        low=100 * float(low),
        high=100 * float(high),
        majority=100 * compute(y, np.full_like(y, majority_label), labels),
        examples=len(y),
        points_per_example=100 / len(y),
        others={
            name: 100 * other(y, z, labels)
            for name, other in METRICS.items()
            if name != metric and (name != "f1" or labels == 2)
        },
    )


def majority_label(labels: Sequence[int | None]) -> int:
    """The most common label; the smallest index among equals."""
    counts = Counter(label for label in labels if label is not None)
    return max(sorted(counts), key=lambda label: counts[label])
