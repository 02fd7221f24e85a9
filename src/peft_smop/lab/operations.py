"""What is trained on, and the operations of a training step that looks at rows more than once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from peft_smop.costs import flops_of, training_flops
from peft_smop.rows import answers_only, verdicts
from peft_smop.tuner import SMoPModel
from peft_smop.tuner.passes import losses_of_rows


def training_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """A batch's loss as training computes it: a decoder's head at the answers alone.

    Args:
        model: adapted.
        batch: with labels; a decoder's as long as its input.
    """
    labels = batch["labels"]
    if labels.shape != batch["input_ids"].shape or model.config.is_encoder_decoder:
        return model(**batch).loss
    tuner = SMoPModel.of(model)
    around = nullcontext() if tuner is None else tuner.terms_apart()
    with around as apart, answers_only(model, labels):
        logits = model(**batch).logits
    said, targets, _ = verdicts(logits, labels)
    loss = nn.functional.cross_entropy(said, targets)
    if apart is None:
        return loss
    if apart.excess is not None:
        loss = loss + apart.excess.sum() / len(targets)
    return loss + sum(apart.terms.values())


def training_operations(
    model: nn.Module, batch: Mapping[str, Tensor], *, num_prompts: int | None = None
) -> int:
    """Forward and backward over a batch, and the passes before them in which rows are judged.

    Those are counted at their mean share: how many rows a small batch happens to judge says nothing
    of a large one. The gradient of a judging router's one product is left out.

    Args:
        model: in the state in which it is trained.
        batch: with labels.
        num_prompts: that were trained; None: as many as there are.
    """
    tuner, adapter = SMoPModel.of(model), SMoPModel.adapter_of(model)
    if tuner is None or adapter is None or not adapter.strategy.judges:
        return training_flops(model, batch, loss=training_loss)
    passes = adapter.strategy.judging_passes(num_prompts or adapter.prompts.shape[0])
    if not passes:
        return training_flops(model, batch, loss=training_loss)
    with tuner.forced_prompt(0):  # rows that are told their prompt are not judged
        once = training_flops(model, batch, loss=training_loss)
    return once + round(passes * _judging_operations(tuner, batch))


def _judging_operations(tuner: SMoPModel, batch: Mapping[str, Tensor]) -> int:
    """One pass in which every row is judged under one prompt."""
    layer = tuner.smop_layer
    rows = torch.arange(len(batch["labels"]))

    def judged(times: int) -> int:
        own = rows.repeat_interleave(times)
        routes = torch.zeros_like(own)
        return flops_of(
            lambda: losses_of_rows(layer, batch, own, routes, adapter_names=None, chunk=len(own))
        )

    if layer[tuner.active_adapters[0]].position == "after":
        return judged(2) - judged(1)  # texts are read once, whatever is behind them
    return judged(1)
