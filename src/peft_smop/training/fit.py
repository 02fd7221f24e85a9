"""One fit: train an adapted model, stop by the validation score, come back with the best state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from peft_smop.scoring import Evaluation, Formulation, evaluate, majority_label
from peft_smop.tasks import Example
from peft_smop.training.options import TrainingOptions
from peft_smop.training.trainer import (
    CompleteCheckpoint,
    ScoringTrainer,
    last_complete_checkpoint,
)

# transformers 5.20 renamed the option and warns of the old name
_CHECKPOINTING: dict[str, Any] = {
    "activation_checkpointing"
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing": True
}


@dataclass(frozen=True)
class Fit:
    """How a training went. The model it trained is left in its best state."""

    steps: int
    best_step: int
    best_score: float
    stopped_early: bool
    history: tuple[dict[str, float], ...]
    truncated: int
    """Training inputs that were longer than the longest length."""


def fit(
    model: PeftModel,
    formulation: Formulation,
    train: Sequence[Example],
    validation: Sequence[Example],
    options: TrainingOptions,
    *,
    seed: int,
    output: Path,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> Fit:
    """Train until the epochs are over or the validation score stops rising.

    Args:
        model: an adapted model; left holding the best state by validation score.
        formulation: how the task is put to it.
        train: labelled examples to learn from.
        validation: labelled examples to choose by.
        options: optimisation and stopping.
        seed: of data order, dropout and whatever else is drawn.
        output: a folder for checkpoints.
        resume: go on from the newest whole checkpoint in `output`, if there is one; the run ends
            with the weights it would have had without the interruption.
        callbacks: further callbacks, such as a progress bar.

    Raises:
        RunError: the loss or the weights stopped being finite.
    """
    formulation.truncated = 0
    features = [formulation.encode(example) for example in train]
    truncated = formulation.truncated
    majority = majority_label([example.label for example in train])
    adapter = model.active_adapter
    num_prompts = getattr(model.peft_config[adapter], "num_prompts", None)

    def score() -> Evaluation:
        return evaluate(
            model,
            formulation,
            validation,
            majority_label=majority,
            num_prompts=num_prompts,
            batch_size=2 * options.batch_size,
            resamples=0,
        )

    checkpoint = last_complete_checkpoint(output) if resume else None
    trainer = ScoringTrainer(
        score=score,
        features=features,
        model=model,
        args=_arguments(options, output, seed, rows=len(features)),
        data_collator=formulation.collate,
        callbacks=[
            EarlyStoppingCallback(early_stopping_patience=options.patience),
            CompleteCheckpoint(),
            *callbacks,
        ],
    )
    trainer.remove_callback(PrinterCallback)
    set_seed(seed)
    if checkpoint is not None and _had_stopped(checkpoint, options.patience):
        # the trainer would forget that patience had run out, and go on
        trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        trainer.state.best_model_checkpoint = str(
            output / Path(str(trainer.state.best_model_checkpoint)).name
        )
        trainer._load_best_model()
        return _outcome(trainer.state, truncated)
    with warnings.catch_warnings():
        # transformers still passes a learning rate schedule through an interface torch has renamed
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return _outcome(trainer.state, truncated)


def _had_stopped(checkpoint: Path, patience: int) -> bool:
    """Whether the run had run out of patience when it was interrupted."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    scores = [entry["eval_score"] for entry in state.log_history if "eval_score" in entry]
    return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= patience


def _outcome(state: TrainerState, truncated: int) -> Fit:
    return Fit(
        steps=state.global_step,
        best_step=state.best_global_step or state.global_step,
        best_score=float(state.best_metric if state.best_metric is not None else float("nan")),
        stopped_early=state.global_step < state.max_steps,
        history=tuple(state.log_history),
        truncated=truncated,
    )


def _arguments(
    options: TrainingOptions, output: Path, seed: int, *, rows: int
) -> TrainingArguments:
    """The options in the Trainer's own terms."""
    per_epoch = -(-rows // options.batch_size)
    rhythm = "epoch" if options.eval_steps is None else "steps"
    return TrainingArguments(
        output_dir=str(output),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        optim=options.optimizer,
        weight_decay=options.weight_decay,
        warmup_steps=options.warmup_ratio,
        lr_scheduler_type=options.schedule,
        eval_strategy=rhythm,
        save_strategy=rhythm,
        eval_steps=options.eval_steps,
        save_steps=options.eval_steps or 500,
        logging_steps=max(1, min(10, per_epoch)),
        logging_nan_inf_filter=False,
        load_best_model_at_end=True,
        metric_for_best_model="eval_score",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
        seed=seed,
        **(_CHECKPOINTING if options.gradient_checkpointing else {}),
    )
