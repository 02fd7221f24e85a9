"""All that one method costs, and what each figure means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from peft_smop.costs.times import Times


@dataclass(frozen=True)
class SampleFlops:
    """GFLOPs of one sample, the mean over a task's rows."""

    text: float
    """Every row at its own length."""
    sorted: float
    """With the padding of batches of similar length."""
    random: float
    """With the padding of batches in random order."""


@dataclass(frozen=True)
class Cost:
    """One method on one model; what was not measured is None."""

    method: str
    trainable: int
    """The trained parameters that a pass reads."""
    allocated: int
    """All that are marked as trainable."""
    percentage: float
    """100 · trainable / (backbone + trainable)."""
    inference: SampleFlops
    """One forward pass, answer included."""
    training: SampleFlops
    """One forward and one backward pass."""
    step: Times | None = None
    """Of a training step: forward, backward, update."""
    memory: int | None = None
    """Most bytes in a training step, see `PeakMemory`."""
    reserved: int | None = None
    """Most bytes that PyTorch held from a CUDA device in that step."""


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """The mean over tasks of what one method costs; parameters are those of the first.

    Args:
        costs: of one method, all of them with what was measured in the first.
    """
    steps = [cost.step for cost in costs if cost.step is not None]
    return replace(
        costs[0],
        inference=_mean_flops([cost.inference for cost in costs]),
        training=_mean_flops([cost.training for cost in costs]),
        step=_mean_times(steps) if steps else None,
        memory=_mean_bytes([cost.memory for cost in costs]),
        reserved=_mean_bytes([cost.reserved for cost in costs]),
    )


def _mean_flops(found: Sequence[SampleFlops]) -> SampleFlops:
    return SampleFlops(
        text=mean(one.text for one in found),
        sorted=mean(one.sorted for one in found),
        random=mean(one.random for one in found),
    )


def _mean_times(found: Sequence[Times]) -> Times:
    return Times(
        median=mean(one.median for one in found),
        low=mean(one.low for one in found),
        high=mean(one.high for one in found),
        repeats=found[0].repeats,
    )


def _mean_bytes(found: Sequence[int | None]) -> int | None:
    known = [value for value in found if value is not None]
    return round(mean(known)) if known else None
