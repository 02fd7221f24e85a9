"""Wall-clock time of steps, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Times:
    """Seconds of one step over several repeats."""

    median: float
    low: float
    """The first quartile."""
    high: float
    """The third quartile."""
    repeats: int


def measure(
    steps: Mapping[str, Callable[[], None]],
    *,
    repeats: int,
    warmup: int = 1,
    on_step: Callable[[str], None] | None = None,
) -> dict[str, Times]:
    """Time several steps in turn: whatever slows the machine for a while slows all of them.

    On CUDA a step's time ends when the device has done it.

    Args:
        steps: what to time, by name.
        repeats: how often each is timed, at least once.
        warmup: how often each is run before, as first runs allocate and compile.
        on_step: told the name after every run.

    Raises:
        ValueError: there is no repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}; expected at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warmup + repeats):
        for name, step in steps.items():
            _wait_for_device()
            started = time.perf_counter()
            step()
            _wait_for_device()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - started)
            if on_step:
                on_step(name)
    return {name: _times(found) for name, found in seconds.items()}


def _times(seconds: list[float]) -> Times:
    low, middle, high = np.percentile(seconds, [25, 50, 75]).tolist()
    return Times(median=middle, low=low, high=high, repeats=len(seconds))


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
