"""Hugging Face's Trainer with our batches, our score, and our alarms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerControl, TrainerState

from peft_smop.errors import DivergedError, RunError
from peft_smop.names import MAX_PADDING
from peft_smop.results import writing
from peft_smop.scoring import Evaluation, Features, Formulation
from peft_smop.training import processes
from peft_smop.training.batching import WINDOW, LengthSampler
from peft_smop.training.checkpoints import best_of, is_whole, restore_trained
from peft_smop.training.steps import Rows, forward_backward
from peft_smop.tuner import SMoPModel

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
        # behind the last row is none: where processes divide an incomplete batch
        super().__init__(
            train_dataset=[*features, {}] if processes.count() > 1 else features,
            eval_dataset=[],
            data_collator=lambda rows: Rows([row for row in rows if row]),
            **kwargs,
        )
        self._formulation = formulation
        # processes wait for each other in every pass, so all must make the same number
        self._max_padding = max_padding if self.args.world_size == 1 else math.inf
        self._step = step
        self.optimizer: torch.optim.Optimizer | None
        self._rates = dict(rates or {})
        self._score = score
        self._lengths = [len(f["input_ids"]) for f in features]
        self._first_bad_step: Tensor | None = None
        self.holds_best = False
        self._most_rows: int | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        tuner = SMoPModel.of(self.model)
        judges = tuner is not None and any(
            tuner.smop_layer[name].strategy.judges for name in tuner.active_adapters
        )
        window = 1 if judges else WINDOW
        # processes take turns at a step's rows, so that together they have those of one alone
        rows = self.args.train_batch_size * self.args.world_size
        return LengthSampler(
            self._lengths, rows, self.args.seed, window=window, processes=self.args.world_size
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

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with writing(self._output):
            super()._save_checkpoint(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        restore_trained(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """Take the best state, or none: the last one in its place would be believed to be it.

        Raises:
            RunError: it is not there as it was saved.
        """
        best = best_of(self.state, self._output)
        if best is None or not is_whole(best):
            raise RunError(
                f"the best state, {best}, is missing or damaged, so there is nothing to test; the"
                " same command with --resume goes on from what is whole"
            )
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()
        restore_trained(self.model, best)
        self.holds_best = True

    @property
    def _output(self) -> Path:
        return Path(str(self.args.output_dir))

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
        """One forward and backward; in smaller parts from the step on that memory does not hold."""
        model.train()
        while True:
            begin = _State.of(model)
            try:
                (loss,) = forward_backward(
                    model,
                    self._formulation,
                    [rows],
                    max_padding=self._max_padding,
                    backward=self.accelerator.backward,
                    most_rows=self._most_rows,
                )
                return loss
            except torch.OutOfMemoryError as error:
                most = self._most_rows or len(rows.features)
                if most == 1 or self.args.world_size > 1:  # others would wait for our passes
                    raise RunError(
                        f"the device's memory does not hold a step of {most} rows; use"
                        " --gradient-checkpointing, or lower --max-length or --batch-size"
                    ) from error
                self._most_rows = (most + 1) // 2
            # only here, as the error keeps what was computed alive
            model.zero_grad()
            begin.restore(model)
            torch.cuda.empty_cache()

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


@dataclass(frozen=True)
class _State:
    """What a pass changes beside gradients: generators, and what judging remembers."""

    generator: Tensor
    of_device: Tensor | None
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> _State:
        tuner = SMoPModel.of(model)
        named = {} if tuner is None else dict(tuner.smop_layer.named_buffers())
        return cls(
            torch.get_rng_state(),
            torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            {name: buffer.clone() for name, buffer in named.items()},
        )

    def restore(self, model: nn.Module) -> None:
        torch.set_rng_state(self.generator)
        if self.of_device is not None:
            torch.cuda.set_rng_state(self.of_device)
        tuner = SMoPModel.of(model)
        for name, buffer in [] if tuner is None else tuner.smop_layer.named_buffers():
            buffer.copy_(self.buffers[name])


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
