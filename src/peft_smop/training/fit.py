"""One fit: train an adapted model, stop by the validation score, come back with the best state."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from peft_smop.errors import ConfigError
from peft_smop.names import PROMPT_SPREADS
from peft_smop.scoring import Evaluation, Formulation, evaluate, majority_label
from peft_smop.tasks import Example
from peft_smop.training import processes
from peft_smop.training.callbacks import Revival, StepMeter
from peft_smop.training.checkpoints import (
    CompleteCheckpoint,
    best_of,
    keep_only,
    last_complete_checkpoint,
    state_of,
)
from peft_smop.training.history import History, Rhythm, figures
from peft_smop.training.options import TrainingOptions, absolute_rate
from peft_smop.training.reporting import close_reports
from peft_smop.training.trainer import ScoringTrainer, Step
from peft_smop.tuner import SMoPModel
from peft_smop.tuner.initialisation import spread_of

# transformers 5.20 renamed the option and warns of the old name
_CHECKPOINTING: dict[str, Any] = {
    "activation_checkpointing"
    if "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    else "gradient_checkpointing": True
}


RATES = {
    "router_learning_rate": (".router",),
    "network_learning_rate": (".network.", "mlp_head"),
}
"""Options and the parts of parameters' names that they are for."""
FALLBACK_RATE = PROMPT_SPREADS[0]
"""For callers that leave the rate to the method and name no method."""


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
    seconds_per_step: float | None
    """Median time of a training step; None when there were too few, or other runs in them."""
    peak_memory: int | None
    """Most memory of a training step in bytes, see `costs.PeakMemory`; None when not measured."""
    revived_prompts: int
    """How often a dead prompt was started again, since a resume."""
    learning_rate: float
    """As the optimizer was given it."""
    ended: float
    """When, by the monotonic clock; others of a pack may be finished before it is looked at."""


@dataclass(frozen=True)
class Training:
    """Everything that one fit is given."""

    model: nn.Module
    """Adapted; left holding the best state by validation score."""
    formulation: Formulation
    """How the task is put to it."""
    train: Sequence[Example]
    """Labelled examples to learn from."""
    validation: Sequence[Example]
    """Labelled examples to choose by."""
    options: TrainingOptions
    seed: int
    """Of data order, dropout and whatever else is drawn."""
    output: Path
    """A folder for checkpoints."""
    resume: bool = False
    """Go on from the newest whole checkpoint in `output`, if there is one."""
    callbacks: Sequence[TrainerCallback] = ()
    """Further callbacks, such as a progress bar."""
    metrics: Path | None = None
    """A file to which loss and validation score are written as they come."""
    report_to: Sequence[str] = ()
    """Where the Trainer reports to as well: tensorboard, wandb, mlflow and its others."""
    title: str | None = None
    """What the run is called there."""


def fit(training: Training) -> Fit:
    """Train until the epochs are over or the validation score stops rising.

    A resumed run ends with the weights that it would have had without the interruption.

    Raises:
        RunError: the loss or the weights stopped being finite.
    """
    checkpoint = last_complete_checkpoint(training.output) if training.resume else None
    with libraries_quiet():
        return fit_with(training, checkpoint)


@contextmanager
def libraries_quiet() -> Iterator[None]:
    """Leave out a warning that a user can do nothing about."""
    with warnings.catch_warnings():
        # transformers still passes a learning rate schedule through an interface torch has renamed
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        yield


def fit_with(training: Training, checkpoint: Path | None, *, step: Step | None = None) -> Fit:
    """Fit from a checkpoint on.

    Args:
        training: what is trained.
        checkpoint: a whole one; None: from the start.
        step: computes losses and gradients in place of the model's own pass.
    """
    model, options, seed = training.model, training.options, training.seed
    formulation = training.formulation
    formulation.truncated = 0
    features = [formulation.encode(example) for example in training.train]
    truncated = formulation.truncated
    majority = majority_label([example.label for example in training.train])

    def score() -> Evaluation:
        return evaluate(
            model,
            formulation,
            training.validation,
            majority_label=majority,
            batch_size=2 * options.batch_size,
            resamples=0,
        )

    if options.keep_texts:
        _keep_texts(model, options.keep_texts)
    rate = _learning_rate(model, options)
    meter = StepMeter()
    own: list[TrainerCallback] = [Rhythm(), CompleteCheckpoint()]
    if training.metrics is not None:
        own.append(History(training.metrics))
    if step is None:  # time and memory of a shared pass are no one run's
        own.append(meter)
    revival = _revival(model, seed) if options.revive_dead_prompts else None
    if revival is not None:
        own.append(revival)
    trainer = ScoringTrainer(
        score=score,
        formulation=formulation,
        features=features,
        max_padding=options.max_padding,
        rates=_rates(model, options),
        step=step,
        model=model,
        args=_arguments(training, rate, rows=len(features)),
        callbacks=[
            EarlyStoppingCallback(early_stopping_patience=options.patience),
            *own,
            *training.callbacks,
        ],
    )
    trainer.remove_callback(PrinterCallback)
    set_seed(seed)
    if checkpoint is not None and had_ended(
        checkpoint, options.patience, steps=options.planned_steps(len(features))
    ):
        # the trainer would not know that it was done, and take another step
        trainer.state = state_of(checkpoint)
    else:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if not trainer.holds_best:  # the trainer goes on without a word where it finds none
        trainer._load_best_model()
    close_reports(training.report_to)
    newest = training.output / f"checkpoint-{trainer.state.global_step}"
    if processes.is_first():
        keep_only(training.output, {newest, best_of(trainer.state, training.output)})
    return _outcome(trainer.state, truncated, rate, meter, revival)


def _rates(model: nn.Module, options: TrainingOptions) -> dict[str, float]:
    """Learning rates of their own, by a part of the parameters' names.

    Raises:
        ConfigError: one was given for parameters that the model does not have.
    """
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    rates = {"modules_to_save": options.head_learning_rate}
    for option, parts in RATES.items():
        rate = getattr(options, option)
        if rate is None:
            continue
        present = [part for part in parts if any(part in name for name in trained)]
        if not present:
            raise ConfigError(
                f"{option}={rate} has nothing to train in this method; leave {option} out"
            )
        rates |= dict.fromkeys(present, rate)
    return rates


def _revival(model: nn.Module, seed: int) -> Revival:
    """Second chances for this model's prompts.

    Raises:
        ConfigError: it has no router that could be given a copy.
    """
    adapter = SMoPModel.adapter_of(model)
    if adapter is None or adapter.router is None:
        raise ConfigError(
            "revive_dead_prompts=True needs a method with a router, such as smop; leave it out"
        )
    return Revival(adapter, seed)


def _keep_texts(model: nn.Module, gibibytes: float) -> None:
    """Let texts be read once in all epochs.

    Raises:
        ConfigError: no prompt stands behind them.
    """
    tuner, adapter = SMoPModel.of(model), SMoPModel.adapter_of(model)
    if tuner is None or adapter is None or adapter.position != "after":
        raise ConfigError(
            f"keep_texts={gibibytes} is for prompts behind their texts, on decoders, as in"
            " --method single:position=after; give position=after, or leave it out"
        )
    tuner.keep_texts(gibibytes)


def had_ended(checkpoint: Path, patience: int, *, steps: int) -> bool:
    """Whether the run had taken all its steps, or run out of patience, when it was interrupted."""
    state = state_of(checkpoint)
    if state.global_step >= steps:
        return True
    scores = [entry["eval_score"] for entry in state.log_history if "eval_score" in entry]
    return bool(scores) and len(scores) - 1 - scores.index(max(scores)) >= patience


def is_first_checkpoint(checkpoint: Path) -> bool:
    """Whether a run had been evaluated only once when it was interrupted."""
    return sum("eval_score" in entry for entry in state_of(checkpoint).log_history) == 1


def _outcome(
    state: TrainerState, truncated: int, rate: float, meter: StepMeter, revival: Revival | None
) -> Fit:
    return Fit(
        steps=state.global_step,
        best_step=state.best_global_step or state.global_step,
        best_score=float(state.best_metric if state.best_metric is not None else float("nan")),
        stopped_early=state.global_step < state.max_steps,
        history=figures(state.log_history),
        truncated=truncated,
        seconds_per_step=meter.seconds_per_step,
        peak_memory=meter.memory.bytes,
        revived_prompts=revival.revived if revival else 0,
        learning_rate=rate,
        ended=time.monotonic(),
    )


def _learning_rate(model: Any, options: TrainingOptions) -> float:
    """The options' rate as optimizers take it, on this model's scale."""
    rate = FALLBACK_RATE if options.learning_rate is None else options.learning_rate
    return absolute_rate(rate, spread_of(model.get_input_embeddings()))


def _rows_of_one_process(batch_size: int, rows: int) -> int:
    """How many of a step's rows each process computes.

    Raises:
        ConfigError: they cannot be divided evenly.
    """
    among = processes.count()
    if batch_size % among:
        raise ConfigError(
            f"batch_size={batch_size} cannot be divided among {among} processes; choose a multiple"
        )
    if 0 < rows % batch_size < among:
        raise ConfigError(
            f"the last step of an epoch has {rows % batch_size} of {rows} rows for {among}"
            " processes, of which each needs one; choose another batch_size"
        )
    return batch_size // among


def _arguments(training: Training, rate: float, *, rows: int) -> TrainingArguments:
    """The options in the Trainer's own terms."""
    options = training.options
    per_epoch = -(-rows // options.batch_size)
    rhythm = "epoch" if options.eval_steps is None else "steps"
    return TrainingArguments(
        output_dir=str(training.output),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=_rows_of_one_process(options.batch_size, rows),
        use_cpu=not torch.cuda.is_available() and processes.count() > 1,
        learning_rate=rate,
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
        dataloader_pin_memory=False,  # batches are built, and pinned, where they are used
        disable_tqdm=True,
        report_to=list(training.report_to) or "none",
        run_name=training.title,
        seed=training.seed,
        **(_CHECKPOINTING if options.gradient_checkpointing else {}),
    )
