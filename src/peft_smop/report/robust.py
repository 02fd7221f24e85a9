"""Scores over tasks and seeds that one lucky seed does not decide (Agarwal et al., 2021).

The interquartile mean and the probability of improvement, as that paper defines them; intervals are
those of a bootstrap that draws seeds anew within every task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
Runs = Sequence[Sequence[float]]
"""For each task, the score of each seed."""
_Scores = list[NDArray[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A value with the 95 % interval that chance over seeds leaves."""

    value: float
    low: float
    high: float


def interquartile_mean(runs: Runs, *, seed: int = 0) -> Estimate:
    """The mean of the middle half of all scores, over tasks and seeds together."""

    def middle(scores: _Scores) -> float:
        ordered = np.sort(np.concatenate(scores))
        cut = len(ordered) // 4
        return float(ordered[cut : len(ordered) - cut].mean())

    return _estimated([runs], lambda drawn: middle(drawn[0]), seed)


def probability_of_improvement(one: Runs, other: Runs, *, seed: int = 0) -> Estimate:
    """How probably a run of one scores higher than a run of the other, on a task drawn at random.

    For each task the share of pairs of seeds in which it does, a tie counting half (Mann and
    Whitney's U over the number of pairs); then the mean over tasks.

    Args:
        one: for each task its scores.
        other: for the same tasks.
        seed: of the resampling.
    """

    def better(drawn: list[_Scores]) -> float:
        shares = [
            ((a[:, None] > b).mean() + (a[:, None] == b).mean() / 2)
            for a, b in zip(drawn[0], drawn[1], strict=True)
        ]
        return float(np.mean(shares))

    return _estimated([one, other], better, seed)


def _estimated(groups: Sequence[Runs], of: Callable[[list[_Scores]], float], seed: int) -> Estimate:
    scores = [[np.asarray(task, dtype=float) for task in runs] for runs in groups]
    generator = np.random.default_rng(seed)
    draws = [
        of([[generator.choice(task, len(task)) for task in runs] for runs in scores])
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(of(scores), float(low), float(high))
