"""What a router does while anyone's Trainer trains it, in that Trainer's own reports."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peft_smop.errors import ConfigError
from peft_smop.rows import BASE
from peft_smop.tuner import Routes, SMoPModel
from peft_smop.tuner.passes import row_losses
from peft_smop.tuner.reading import evaluating


class RoutingCallback(TrainerCallback):
    """Report load, entropy and regret of SMoP adapters' routers to whatever a Trainer reports to.

    - `routing_load_J`, from 0 to 1: the share of the rows that got prompt J.
    - `routing_entropy`, in nats, from 0 to ln k: of the router's probabilities, mean over rows.
    - `routing_regret`, in nats a row: the loss under the router's choice less that under the row's
      best prompt, mean over rows; a row's loss is summed over its labels.

    With every training loss: load and entropy of the passes since the last one, as they were
    routed, noise included, over all processes. With every evaluation, behind its prefix
    (`eval_routing_load_0`): all three, without noise, on up to `rows` rows that are spread evenly
    over its data; they are also in what `evaluate` returns, so that one may be a
    `metric_for_best_model`. Regret is below 0 where a mixture of prompts is better than any one.

    Where several adapters have a router, their names are in between: `routing_NAME_load_0`. Rows
    follow the batch's `adapter_names`, where there are any. Adapters without a router are left out.

    Training is what it would be without it: neither its random numbers, nor the model's mode, nor
    `last_routes` are touched. An evaluation costs k + 1 more forward passes over the rows.

    Example:
        trainer = Trainer(model=model, args=args, train_dataset=train, eval_dataset=validation)
        trainer.add_callback(RoutingCallback(trainer))
        trainer.train()

    Args:
        trainer: the Trainer to which it is added; its model has a SMoP adapter with a router.
        rows: most rows of an evaluation to look at; 0: none, training passes alone are reported.

    Raises:
        ConfigError: there is no such adapter; `rows` is not a number of rows; or, at an evaluation,
            its batches have no labels.
    """

    def __init__(self, trainer: Trainer, *, rows: int = 256) -> None:
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
            raise ConfigError(f"rows={rows!r} must be a whole number of at least 0 rows")
        self.trainer = trainer
        self.rows = rows
        self._trained: dict[str, Tensor] = {}
        """By adapter, the sums over the passes since the last training loss was logged."""
        if not _routers(self._tuner()):
            raise ConfigError(
                "RoutingCallback watches routers, and no adapter of this model has one; use a"
                " routing strategy that has, such as SMoPConfig(routing='linear')"
            )

    def _tuner(self) -> SMoPModel:
        model = self.trainer.model
        tuner = None if model is None else SMoPModel.of(model)
        if tuner is None:
            raise ConfigError(
                f"RoutingCallback watches SMoP adapters, and {type(model).__name__} is no PEFT"
                " model with one; give the Trainer get_peft_model(model, SMoPConfig(...))"
            )
        return tuner

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to count."""
        self._trained = {}

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a pass whose gradients are accumulated."""
        self._count()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a step's last pass."""
        self._count()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report the training passes behind a training loss."""
        if not logs or "loss" not in logs:
            return
        tuner = self._tuner()
        found: dict[str, float] = {}
        for name, k in _routers(tuner).items():
            # processes may have seen rows of different adapters, but must all take part
            empty = torch.zeros(k + 2, device=tuner.smop_layer[name].prompts.device)
            sums = self.trainer.accelerator.reduce(self._trained.get(name, empty), reduction="sum")
            found |= _said(sums, _prefix(tuner, name))
        self._trained = {}
        if found:
            self.trainer.log(found)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        eval_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        """Report what the router does on the evaluation's rows."""
        if self.rows == 0 or metrics is None or eval_dataloader is None:
            return
        # every set of a dictionary of them has a prefix of its own
        runtimes = [key for key in metrics if key.endswith("_runtime")]
        prefix = runtimes[0].removesuffix("_runtime") if runtimes else "eval"
        tuner = self._tuner()
        sums: dict[str, Tensor] = {}
        regrets: dict[str, Tensor] = {}
        with _untouched(tuner), torch.no_grad():
            for batch in _batches(eval_dataloader, rows=self.rows, size=args.eval_batch_size):
                for name, own, regret in _looked_at(tuner, batch, chunk=args.eval_batch_size):
                    sums[name] = sums[name] + own if name in sums else own
                    regrets[name] = regrets[name] + regret if name in regrets else regret
        found: dict[str, float] = {}
        for name, own in sums.items():
            called = f"{prefix}_{_prefix(tuner, name)}"
            found |= _said(own, called)
            found[f"{called}_regret"] = float(regrets[name] / own[-1])
        metrics.update(found)
        if found:
            self.trainer.log(found)

    def _count(self) -> None:
        """Add the last pass to the sums; the host does not wait for the device."""
        tuner = self._tuner()
        routes = tuner.last_routes
        if routes is None:  # a compiled model remembers none
            return
        for name, (own, _) in _sums(tuner, routes).items():
            self._trained[name] = self._trained[name] + own if name in self._trained else own


def _routers(tuner: SMoPModel) -> dict[str, int]:
    """The adapters with a router, and their numbers of prompts."""
    adapters = tuner.smop_layer.adapters()
    return {
        name: adapter.prompts.shape[0]
        for name, adapter in adapters.items()
        if adapter.router is not None
    }


def _prefix(tuner: SMoPModel, name: str) -> str:
    """What an adapter's figures begin with."""
    return f"routing_{name}" if len(_routers(tuner)) > 1 else "routing"


def _sums(
    tuner: SMoPModel, routes: Routes
) -> dict[str, tuple[Float[Tensor, "k+2"], Bool[Tensor, "b"]]]:
    """For every adapter with a router that has rows in a pass, sums over them, and which they are.

    The sums are rows by prompt, entropy in nats, and rows.
    """
    found = {}
    for name, k in _routers(tuner).items():
        if name not in routes.adapters:
            continue
        mask = torch.tensor([own == name for own in routes.adapters], device=routes.logits.device)
        chosen, logits = routes.chosen[mask], routes.logits[mask][:, :k].float()
        prompts = torch.arange(k, device=chosen.device)
        rows = (chosen[:, None] == prompts).sum(dim=0).float()
        entropy = torch.special.entr(logits.softmax(dim=-1)).sum()
        found[name] = (torch.cat([rows, entropy[None], mask.sum()[None].float()]), mask)
    return found


def _said(sums: Float[Tensor, "k+2"], called: str) -> dict[str, float]:
    """Load and entropy for people; nothing where there were no rows."""
    *by_prompt, entropy, rows = sums.tolist()
    if rows == 0:
        return {}
    load = {f"{called}_load_{j}": count / rows for j, count in enumerate(by_prompt)}
    return {**load, f"{called}_entropy": entropy / rows}


def _batches(loader: DataLoader, *, rows: int, size: int) -> Iterator[Mapping[str, Any]]:
    """Some rows of the evaluation's data, the same ones each time, in batches.

    The loader itself is not iterated: that would draw a random number, and accelerate would take it
    for the loader that is being trained on.
    """
    data: Any = loader.dataset
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        count = min(rows, len(data))
        chosen: Any = (data[i * len(data) // count] for i in range(count))
    else:
        chosen = islice(data, rows)
    while own := list(islice(chosen, size)):
        yield loader.collate_fn(own)


def _looked_at(
    tuner: SMoPModel, batch: Mapping[str, Any], *, chunk: int
) -> Iterator[tuple[str, Float[Tensor, "k+2"], Float[Tensor, ""]]]:
    """Every adapter with a router in a batch, with its sums and the sum of its rows' regret.

    Raises:
        ConfigError: there are no labels, or the head gives no distribution over them.
    """
    if not isinstance(batch.get("labels"), Tensor):
        raise ConfigError(
            "RoutingCallback measures regret by the labels of the evaluation's batches, and they"
            " have none; give them labels, or use rows=0, which reports training passes alone"
        )
    device = next(tuner.parameters()).device
    given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    names: Sequence[str] | None = given.pop("adapter_names", None)
    output = tuner(**given, adapter_names=names)
    routes = tuner.last_routes
    if routes is None:
        raise ConfigError("RoutingCallback watches adapters, and they are disabled")
    predicts_next = tuner.smop_layer.hooks.backbone.predicts_next
    routed = row_losses(output, given["labels"], predicts_next=predicts_next)
    for name, (own, mask) in _sums(tuner, routes).items():
        # the other rows need no pass
        only = None if names is None else [name if other == name else BASE for other in names]
        under_each = tuner.prompt_losses(chunk=chunk, adapter_names=only, **given)
        yield name, own, (routed - under_each.amin(dim=1))[mask].sum()


@contextmanager
def _untouched(tuner: SMoPModel) -> Iterator[None]:
    """Evaluation mode for a while; modes, last routes and random numbers are put back."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        # data are read, and collated, on the host
        with (
            evaluating(tuner.model),
            torch.random.fork_rng(devices=[]),
            tuner.smop_layer.unseen(),
        ):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
