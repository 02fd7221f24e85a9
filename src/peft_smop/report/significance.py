"""Whether a difference between two methods is more than the luck of the test examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peft_smop.scoring.metrics import Figures, compute, drawn

LEVEL = 0.05
RESAMPLES = {"accuracy": 10_000}
"""Bootstrap samples by metric; others take longer, and get fewer."""
FEWER_RESAMPLES = 2_000
TOGETHER = 256
"""Resamples that are computed at once."""

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
    """Resample examples, all seeds of an example together; the mean over seeds of the difference.

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
    parts = [
        _Seed.of([key for key in keys if key[0] == number], reference, other, place)
        for number in sorted({number for number, _ in keys})
    ]
    generator = np.random.default_rng(seed)
    count = RESAMPLES.get(metric, FEWER_RESAMPLES)

    def gains(counts: Figures) -> Figures:
        found = np.array([part.gains(counts, metric, labels) for part in parts]).mean(axis=0)
        return np.asarray(np.round(found, 9) + 0.0)  # so that equal is equal

    points = gains(np.ones((1, len(examples)))).item()
    draws = np.concatenate(
        [
            gains(drawn(generator, len(examples), min(TOGETHER, count - start)))
            for start in range(0, count, TOGETHER)
        ]
    )
    low, high = np.percentile(draws, [2.5, 97.5])
    p = min(1.0, 2 * min((draws <= 0).mean(), (draws >= 0).mean()))
    return Difference(points, float(low), float(high), max(float(p), 1 / count))


@dataclass(frozen=True)
class _Seed:
    """Both methods' predictions with one seed."""

    example: NDArray[np.int64]
    truth: NDArray[np.int64]
    one: NDArray[np.int64]
    two: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        keys: Sequence[tuple[int, str]],
        reference: Outcomes,
        other: Outcomes,
        place: Mapping[str, int],
    ) -> _Seed:
        return cls(
            np.array([place[example] for _, example in keys]),
            np.array([reference[key][0] for key in keys]),
            np.array([reference[key][1] for key in keys]),
            np.array([other[key][1] for key in keys]),
        )

    def gains(self, drawn: Figures, metric: str, labels: int) -> Figures:
        """The differences in points (r,) where samples have each example so often (r, n)."""
        weights = drawn[:, self.example]
        has_own = weights.any(axis=1)
        weights[~has_own] = 1.0
        if metric == "accuracy":  # which needs no counts of every label
            right = (self.two == self.truth).astype(float) - (self.one == self.truth)
            found = weights @ right / weights.sum(axis=1)
        else:
            one, two = (
                compute(metric, self.truth, given, labels, weights=weights)
                for given in (self.one, self.two)
            )
            found = two - one
        # 0 where none of this seed's own examples was drawn
        return np.where(has_own, 100 * found, 0.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, 1979), in the order given."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected.tolist()
