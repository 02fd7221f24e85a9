"""Whether a difference between two methods is more than the luck of the test examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peft_smop.scoring import METRICS

LEVEL = 0.05
RESAMPLES = {"accuracy": 10_000}
"""Bootstrap samples by metric; others are computed one by one, and get fewer."""
FEWER_RESAMPLES = 2_000

Outcomes = Mapping[tuple[int, str], tuple[int, int]]
"""By seed and example: the true label and the predicted one."""


@dataclass(frozen=True)
class Difference:
    """One method's score minus the reference's, in points, on the same examples and seeds."""

    points: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    p: float
    """Two-sided, of the paired bootstrap; as it is, or corrected by `holm`."""

    @property
    def words(self) -> str:
        """What may be said."""
        if self.p >= LEVEL:
            return "not significant"
        return "better" if self.points > 0 else "worse"


def paired_bootstrap(
    reference: Outcomes, other: Outcomes, *, metric: str, labels: int, seed: int = 0
) -> Difference:
    """Resample examples, all seeds of an example together, and look at the pooled difference.

    Args:
        reference: the method that the other is held against.
        other: the other method.
        metric: a key of `METRICS`.
        labels: how many labels the task has.
        seed: of the resampling.

    Raises:
        ValueError: the two share no example of the same seed.
    """
    keys = sorted(set(reference) & set(other))
    if not keys:
        raise ValueError("the two methods share no test example of the same seed")
    examples = sorted({example for _, example in keys})
    place = {example: i for i, example in enumerate(examples)}
    cluster = np.array([place[example] for _, example in keys])
    truth = np.array([reference[key][0] for key in keys])
    one = np.array([reference[key][1] for key in keys])
    two = np.array([other[key][1] for key in keys])
    generator = np.random.default_rng(seed)
    compute = METRICS[metric]
    points = 100 * (compute(truth, two, labels) - compute(truth, one, labels))
    count = RESAMPLES.get(metric, FEWER_RESAMPLES)
    draws = np.empty(count)
    if metric == "accuracy":
        gain = np.bincount(cluster, (two == truth).astype(float) - (one == truth))
        size = np.bincount(cluster)
        for i in range(count):
            drawn = generator.integers(0, len(examples), len(examples))
            draws[i] = 100 * gain[drawn].sum() / size[drawn].sum()
    else:
        members = [np.flatnonzero(cluster == i) for i in range(len(examples))]
        for i in range(count):
            drawn = np.concatenate(
                [members[j] for j in generator.integers(0, len(examples), len(examples))]
            )
            draws[i] = 100 * (
                compute(truth[drawn], two[drawn], labels)
                - compute(truth[drawn], one[drawn], labels)
            )
    low, high = np.percentile(draws, [2.5, 97.5])
    p = min(1.0, 2 * min((draws <= 0).mean(), (draws >= 0).mean()))
    return Difference(float(points), float(low), float(high), max(float(p), 1 / count))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, 1979), in the order given."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected.tolist()
