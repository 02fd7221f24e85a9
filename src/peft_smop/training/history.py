"""What is written down of a training while it goes on, so that a resumed one writes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_smop.results import append_line, write_jsonl


def figures(history: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], ...]:
    """The entries of training and validation; not the trainer's last one, of times."""
    # in one order: a resumed run reads them back by name
    return tuple(dict(sorted(e.items())) for e in history if "loss" in e or "eval_score" in e)


class Rhythm(TrainerCallback):
    """Log wherever a checkpoint may be saved, and look at the last state too.

    A mean loss that began before a checkpoint would be another one after a resume; and a run whose
    steps are no multiple of its evaluations would never look at its last state.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add to what is due after this step."""
        if state.global_step >= state.max_steps and args.eval_strategy == "steps":
            control.should_evaluate = control.should_save = True
        if control.should_evaluate or control.should_save:
            control.should_log = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The same for what is due after an epoch."""
        if control.should_evaluate or control.should_save:
            control.should_log = True


class History(TrainerCallback):
    """Let a file of metrics grow with the training; after a resume it begins with what had been.

    Args:
        path: of the file, JSON lines.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what the checkpoint knows."""
        if state.is_world_process_zero:
            write_jsonl(self.path, figures(state.log_history))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is new."""
        if state.is_world_process_zero:
            for entry in figures(state.log_history[-1:]):
                append_line(self.path, entry)
