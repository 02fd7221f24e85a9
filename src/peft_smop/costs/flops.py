"""Floating-point operations, counted by PyTorch operation by operation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def training_flops(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Operations of one forward and one backward pass over a batch, padding included.

    Matrix products count two per multiply and add; element-wise work is not counted. The model's
    gradients are cleared.

    Args:
        model: in the state in which it is trained.
        batch: with labels.
    """
    was_training = model.training
    model.train()
    counter = FlopCounterMode(display=False)
    try:
        on_cpu = next(iter(batch.values())).device.type == "cpu"
        # fused attention on the CPU has no formula; its plain form is counted product by product
        with sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext(), counter:
            model(**batch).loss.backward()
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    return counter.get_total_flops()
