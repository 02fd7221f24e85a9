"""Whether a difference between two methods is more than the luck of the test examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peft_smop.scoring import compute

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
    everything = np.ones(len(examples), dtype=np.int64)
    points = np.mean([part.gain(everything, metric, labels) for part in parts])
    draws = np.empty(count)
    for i in range(count):
        drawn = np.bincount(
            generator.integers(0, len(examples), len(examples)), minlength=len(examples)
        )
        draws[i] = np.mean([part.gain(drawn, metric, labels) for part in parts])
    low, high = np.percentile(draws, [2.5, 97.5])
    p = min(1.0, 2 * min((draws <= 0).mean(), (draws >= 0).mean()))
    return Difference(float(points), float(low), float(high), max(float(p), 1 / count))


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

    def gain(self, drawn: NDArray[np.int64], metric: str, labels: int) -> float:
        """The difference in points when each example counts as often as it was drawn."""
        weights = drawn[self.example]
        if not weights.any():
            return 0.0  # none of this seed's own examples was drawn
        if metric == "accuracy":
            right = (self.two == self.truth).astype(float) - (self.one == self.truth)
            return 100 * float(right @ weights / weights.sum())
        one, two = (
            compute(metric, self.truth, given, labels, weights=weights[None].astype(float)).item()
            for given in (self.one, self.two)
        )
        return 100 * (two - one)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, 1979), in the order given."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected.tolist()
