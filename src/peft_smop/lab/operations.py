"""Operations of a training step, whatever share of its rows it looks at more than once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from peft_smop.costs import inference_flops, training_flops
from peft_smop.tuner import SMoPModel


def training_operations(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Forward and backward over a batch, and the passes before them in which rows are judged.

    Those are counted at their mean share: how many rows a small batch happens to judge says nothing
    of a large one.

    Args:
        model: in the state in which it is trained.
        batch: with labels.
    """
    tuner = SMoPModel.of(model)
    passes = 0.0
    if tuner is not None:
        adapter = tuner.smop_layer[tuner.active_adapters[0]]
        passes = adapter.strategy.judging_passes(adapter.prompts.shape[0])
    if tuner is None or not passes:
        return training_flops(model, batch)
    with tuner.judged(None):
        once = training_flops(model, batch)
    return once + round(passes * inference_flops(model, batch))
