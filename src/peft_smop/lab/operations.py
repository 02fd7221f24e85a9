"""Operations of a training step, whatever share of its rows it looks at more than once."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from peft_smop.costs import inference_flops, training_flops
from peft_smop.tuner import SMoPModel


def training_operations(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Forward and backward over a batch, and the passes before them in which rows are judged.

    Those are counted at their mean share: how many rows a small batch happens to judge says nothing
    of a large one. The gradient of a judging router's one product is left out.

    Args:
        model: in the state in which it is trained.
        batch: with labels.
    """
    tuner, adapter = SMoPModel.of(model), SMoPModel.adapter_of(model)
    if tuner is None or adapter is None or not adapter.strategy.judges:
        return training_flops(model, batch)
    passes = adapter.strategy.judging_passes(adapter.prompts.shape[0])
    if not passes:
        return training_flops(model, batch)
    with tuner.forced_prompt(0):  # rows that are told their prompt are not judged
        once = training_flops(model, batch)
    return once + round(passes * inference_flops(model, batch))
