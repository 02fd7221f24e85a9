"""Hugging Face's Trainer with our batches, our score, and our alarms."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PromptLearningConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from peft_smop.errors import DivergedError
from peft_smop.scoring import MAX_PADDING, Evaluation, Features, Formulation
from peft_smop.training.batching import WINDOW, LengthSampler
from peft_smop.training.steps import Rows, forward_backward
from peft_smop.tuner import SMoPModel

TRAINED = "trained.safetensors"
"""In a checkpoint: the trained parameters themselves, where PEFT saves only what they make."""
COMPLETE = "complete"
"""Written into a checkpoint when everything else is there; a checkpoint without it is ignored."""
Step = Callable[[Rows], Tensor]
"""From one run's rows to their loss; leaves gradients in the parameters."""


class ScoringTrainer(Trainer):
    """A Trainer whose evaluation scores labels and whose batches hold rows of similar length.

    Args:
        score: evaluates the model in its present state.
        formulation: how the task is put to the model.
        features: the encoded training rows.
        max_padding: most tokens computed over tokens of text; a batch that would have more is
            computed in several passes.
        rates: learning rates by a part of a parameter's name; other parameters have the run's.
        step: computes a batch's loss and gradients in place of this trainer's own model.
        kwargs: as for `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        score: Callable[[], Evaluation],
        formulation: Formulation,
        features: list[Features],
        max_padding: float = MAX_PADDING,
        rates: Mapping[str, float] | None = None,
        step: Step | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(train_dataset=features, eval_dataset=[], data_collator=Rows, **kwargs)
        self._formulation = formulation
        # processes wait for each other in every pass, so all must make the same number
        self._max_padding = max_padding if self.args.world_size == 1 else math.inf
        self._step = step
        self.optimizer: torch.optim.Optimizer | None
        self._rates = dict(rates or {})
        self._score = score
        self._lengths = [len(f["input_ids"]) for f in features]
        self._first_bad_step: Tensor | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        tuner = SMoPModel.of(self.model)
        judges = tuner is not None and any(
            tuner.smop_layer[name].strategy.judges for name in tuner.active_adapters
        )
        window = 1 if judges else WINDOW
        return LengthSampler(
            self._lengths, self.args.train_batch_size, self.args.seed, window=window
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """One group of parameters for every learning rate, divided further by weight decay."""
        if self.optimizer is None and self._rates:
            model = self.model
            decayed = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[float, float], list[Tensor]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    rate = next(
                        (rate for part, rate in self._rates.items() if part in name),
                        self.args.learning_rate,
                    )
                    decay = self.args.weight_decay if name in decayed else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = kind(
                [
                    {"params": parameters, "lr": rate, "weight_decay": decay}
                    for (rate, decay), parameters in groups.items()
                ],
                **options,
            )
        return super().create_optimizer(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        _restore_trained(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        _restore_trained(self.model, Path(str(self.state.best_model_checkpoint)))

    def training_step(self, model: nn.Module, inputs: Rows, *args: Any, **kwargs: Any) -> Tensor:
        """Leave the gradients of one batch in the parameters; return its loss.

        The first step whose loss is not finite is remembered on the device, without waiting for it.
        """
        loss = self._step(inputs) if self._step else self._alone(model, inputs)
        # fp32 counts steps exactly where the loss's own precision may not
        step = torch.full_like(loss, self.state.global_step + 1, dtype=torch.float32)
        if self._first_bad_step is None:
            self._first_bad_step = torch.full_like(step, math.inf)
        bad = torch.where(torch.isfinite(loss), math.inf, step)
        self._first_bad_step = torch.minimum(self._first_bad_step, bad)
        return loss

    def _alone(self, model: nn.Module, rows: Rows) -> Tensor:
        model.train()
        (loss,) = forward_backward(
            model,
            self._formulation,
            [rows],
            max_padding=self._max_padding,
            backward=self.accelerator.backward,
        )
        return loss

    def _get_num_items_in_batch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to count: losses are means over the step already."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated; `peft_smop.costs` counts."""
        return 0

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Stop at a loss that is not finite; the trainer has fetched it from the device anyway.

        Raises:
            DivergedError: with the step at which it happened.
        """
        super().log(logs, *args, **kwargs)
        loss = logs.get("loss")
        if loss is not None and not math.isfinite(loss) and self._first_bad_step is not None:
            raise _diverged(f"the loss became {loss}", self.state, int(self._first_bad_step))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the validation examples; refuse to go on from weights that are not finite."""
        check_finite(self.model, self.state)
        evaluation = self._score()
        metrics = {
            "eval_score": evaluation.score.value,
            "eval_loss": evaluation.loss,
            "eval_majority": evaluation.score.majority,
            **{f"eval_load_{j}": part for j, part in enumerate(evaluation.load)},
        }
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def _save_trained(model: nn.Module, folder: Path) -> None:
    """Keep what is trained where PEFT keeps only its product.

    P-tuning trains a network that makes the prompt; PEFT saves the prompt, and would put it back in
    place of the network's input.
    """
    configs = getattr(model, "peft_config", {}).values()
    if any(isinstance(config, PromptLearningConfig) for config in configs):
        trained = {n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / TRAINED)


def _restore_trained(model: nn.Module, folder: Path) -> None:
    if (folder / TRAINED).is_file():
        trained = load_file(folder / TRAINED)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in trained:
                    parameter.copy_(trained[name])


def check_finite(model: Any, state: TrainerState) -> None:
    """Stop before a checkpoint is written from ruined weights.

    Raises:
        DivergedError: a trained parameter is not finite.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            what = f"{name.removeprefix('base_model.model.')} is not finite"
            raise _diverged(what, state, state.global_step)


def _diverged(what: str, state: TrainerState, step: int) -> DivergedError:
    kept = state.best_model_checkpoint
    good = f"the best state so far is kept in {kept}" if kept else "no good state was reached"
    return DivergedError(
        f"training stopped at step {step}: {what}; {good}; lower the learning rate"
    )


class CompleteCheckpoint(TrainerCallback):
    """Mark a checkpoint as whole once all its files are written, and only then drop older ones.

    The trainer's own rotation would delete the last whole checkpoint before the new one is marked.
    """

    def __init__(self) -> None:
        self._newest: Path | None = None

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the mark."""
        assert args.output_dir is not None
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not folder.is_dir():
            return
        if model is not None:
            _save_trained(model, folder)
        (folder / COMPLETE).touch()
        self._newest = folder

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the newest checkpoint and the best one; runs that share steps have saved by now."""
        if self._newest is None:
            return
        best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else ""
        for other in self._newest.parent.glob("checkpoint-*"):
            if other.name not in (self._newest.name, best):
                shutil.rmtree(other, ignore_errors=True)
        self._newest = None


def complete_checkpoints(output: Path) -> dict[int, Path]:
    """The checkpoints that were written to their end, by step."""
    return {
        int(folder.name.rsplit("-", 1)[1]): folder
        for folder in output.glob("checkpoint-*")
        if folder.name.rsplit("-", 1)[1].isdigit() and (folder / COMPLETE).is_file()
    }


def last_complete_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None."""
    steps = complete_checkpoints(output)
    return steps[max(steps)] if steps else None
