"""Progress bars with the loss, the validation score and the time left."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def bars(console: Console) -> Progress:
    """Where runs draw their lines, one each; enter it before training."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}  {task.fields[score]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class ProgressBar(TrainerCallback):
    """One line on the terminal; where there is none, a line of text at every evaluation.

    Args:
        progress: where to draw.
        title: what the line begins with.
    """

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress = progress
        self.console = progress.console
        self.title = title
        self.loss, self.score = "loss –", "validation –"

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Draw the empty bar."""
        self.bar = self.progress.add_task(
            self.title,
            total=state.max_steps,
            completed=state.global_step,
            loss=self.loss,
            score=self.score,
        )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Move on by a step."""
        self.progress.update(self.bar, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest figures."""
        logs = logs or {}
        if "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}"
        if "eval_score" in logs:
            best = max(
                [e["eval_score"] for e in state.log_history if "eval_score" in e],
                default=logs["eval_score"],
            )
            self.score = f"validation {logs['eval_score']:.1f} (best {best:.1f})"
            if not self.console.is_terminal:
                self.console.print(
                    f"{self.title}: step {state.global_step}/{state.max_steps}"
                    f"  {self.loss}  {self.score}",
                    soft_wrap=True,
                    markup=False,
                )
        self.progress.update(self.bar, loss=self.loss, score=self.score)
