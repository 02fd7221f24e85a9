"""Scores, beside what a constant answer reaches and the interval that chance leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Figures = NDArray[np.floating]


class LabelCounts(NamedTuple):
    """For each of r samples (rows) and each label (columns), how many examples."""

    right: Figures
    """Have this label and were given it."""
    predicted: Figures
    true: Figures


def _accuracy(counts: LabelCounts) -> Figures:
    return counts.right.sum(axis=1) / counts.true.sum(axis=1)


def _f1_of_each(counts: LabelCounts) -> Figures:
    """2 · right / (predicted + true); 0 where a label is neither."""
    either = counts.predicted + counts.true
    return 2 * counts.right / np.where(either == 0, 1, either)


def _f1(counts: LabelCounts) -> Figures:
    """Binary F1 of the last label, as SuperGLUE defines F1a (all answer options together)."""
    return _f1_of_each(counts)[:, -1]


def _macro_f1(counts: LabelCounts) -> Figures:
    return _f1_of_each(counts).mean(axis=1)


METRICS: dict[str, Callable[[LabelCounts], Figures]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
}


def compute(
    metric: str,
    truth: Labels,
    predicted: Labels,
    labels: int,
    *,
    weights: Figures | None = None,
) -> Figures:
    """A metric, from 0 to 1, of each of r samples of the examples.

    Args:
        metric: a key of `METRICS`.
        truth: the true label of every example (n,).
        predicted: the predicted one (n,).
        labels: how many labels the task has.
        weights: how often each sample has each example (r, n); None: one sample, each once.
    """
    if weights is None:
        weights = np.ones((1, len(truth)))
    true = truth[:, None] == np.arange(labels)
    given = predicted[:, None] == np.arange(labels)
    right, predicted_as, true_as = (
        (weights @ each.astype(weights.dtype)).astype(float) for each in (true & given, given, true)
    )
    return METRICS[metric](LabelCounts(right, predicted_as, true_as))


def drawn(generator: np.random.Generator, examples: int, samples: int) -> Figures:
    """Samples of as many examples, with replacement: how often each has each (r, n)."""
    times = np.empty((samples, examples), dtype=np.float32)  # whole numbers, exact below 2 ** 24
    for row in times:
        row[:] = np.bincount(generator.integers(0, examples, examples), minlength=examples)
    return times


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
    weights = drawn(np.random.default_rng(seed), len(y), resamples)
    draws = compute(metric, y, z, labels, weights=weights)
    low, high = np.percentile(draws, [2.5, 97.5]) if resamples else (float("nan"), float("nan"))
    return Score(
        metric=metric,
        value=100 * compute(metric, y, z, labels).item(),
        low=100 * float(low),
        high=100 * float(high),
        majority=100 * compute(metric, y, np.full_like(y, majority_label), labels).item(),
        examples=len(y),
        points_per_example=100 / len(y),
        others={
            name: 100 * compute(name, y, z, labels).item()
            for name in METRICS
            if name != metric and (name != "f1" or labels == 2)
        },
    )


def majority_label(labels: Sequence[int | None]) -> int:
    """The most common label; the smallest index among equals."""
    counts = Counter(label for label in labels if label is not None)
    return max(sorted(counts), key=lambda label: counts[label])
