"""What happens between steps: a clock, and second chances for dead prompts."""

from __future__ import annotations

import time
from statistics import median
from typing import Any, TypeAlias

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_smop.costs import PeakMemory
from peft_smop.scoring import DEAD_LOAD
from peft_smop.tuner.layer import Adapter

WARMUP_STEPS = 3
"""Steps that the clock leaves out, as the first ones allocate and compile."""


Mark: TypeAlias = "float | torch.cuda.Event"
"""A moment: the host's clock, or a place in the device's queue."""


def _mark() -> Mark:
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(begin: Mark, end: Mark) -> float:
    if isinstance(begin, float) or isinstance(end, float):
        return float(end) - float(begin)
    end.synchronize()
    return begin.elapsed_time(end) / 1000


class StepMeter(TrainerCallback):
    """Time and memory of training steps, evaluation and saving left out.

    On CUDA the device's own clock is read when training is over: no step waits for it.
    """

    def __init__(self) -> None:
        self.memory = PeakMemory()
        self._steps: list[tuple[Mark, Mark]] = []
        self._last: Mark | None = None

    @property
    def seconds(self) -> list[float]:
        """Of every step whose beginning is known."""
        return [_seconds(begin, end) for begin, end in self._steps]

    @property
    def seconds_per_step(self) -> float | None:
        """The median, in seconds; None when there were too few steps."""
        counted = self.seconds[WARMUP_STEPS:]
        return median(counted) if counted else None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at memory, if that was interrupted."""
        self.memory.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the time since the last step ended; before anything else is done, stop both."""
        now = _mark()
        if self._last is not None:
            self._steps.append((self._last, now))
        # what follows an evaluation or a save would count their time
        interrupted = control.should_evaluate or control.should_save
        self._last = None if interrupted else now
        if interrupted:
            self.memory.stop()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop both: evaluation may follow."""
        self._last = None
        self.memory.stop()


class Revival(TrainerCallback):
    """Start prompts anew that got no validation rows, as near copies of the busiest one.

    It acts before the step that follows an evaluation, so that the state that was evaluated is the
    state that is saved; what it does is a function of the recorded loads, the seed and the step, so
    that a resumed run does the same.

    Args:
        adapter: whose prompts.
        seed: of the small differences.
    """

    def __init__(self, adapter: Adapter, seed: int) -> None:
        self.adapter = adapter
        self.seed = seed
        self.revived = 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the newest loads, if they are of this very step."""
        newest = next((e for e in reversed(state.log_history) if "eval_load_0" in e), None)
        if newest is None or newest.get("step") != state.global_step:
            return
        count = self.adapter.prompts.shape[0]
        load = [newest[f"eval_load_{j}"] for j in range(count)]
        dead = [j for j, part in enumerate(load) if part < DEAD_LOAD]
        if not dead:
            return
        busiest = max(range(count), key=load.__getitem__)
        seed = self.seed * 1_000_003 + state.global_step
        self.adapter.revive(dead, busiest, seed=seed)
        self.revived += len(dead)
