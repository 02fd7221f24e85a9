"""Floating-point operations, counted by PyTorch operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

_COUNTED_AT = ((1, 8), (1, 16), (1, 32), (2, 8), (2, 16))
"""Rows and lengths that tell the five terms of `FlopsByLength` apart; short, as counting runs."""


Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""From a model and a batch to what is trained on."""


def own_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """What the model itself says."""
    return model(**batch).loss


def training_flops(model: nn.Module, batch: Mapping[str, Tensor], *, loss: Loss = own_loss) -> int:
    """Operations of one forward and one backward pass over a batch, padding included.

    Matrix products count two per multiply and add; element-wise work is not counted. The model's
    gradients are cleared.

    Args:
        model: in the state in which it is trained.
        batch: with labels.
        loss: computes what is trained on.
    """
    return _count(model, lambda: loss(model, batch).backward(), training=True)


def inference_flops(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Operations of one forward pass over a batch in evaluation, padding included.

    Args:
        model: any model.
        batch: with labels, where the model decodes an answer from its input.
    """
    return _count(model, lambda: model(**batch), training=False)


def _count(model: nn.Module, call: Callable[[], object], *, training: bool) -> int:
    was_training = model.training
    model.train(training)
    try:
        with torch.set_grad_enabled(training):
            return flops_of(call)
    finally:
        if training:
            model.zero_grad(set_to_none=True)
        model.train(was_training)


def flops_of(call: Callable[[], object]) -> int:
    """Operations of anything that is computed."""
    counter = FlopCounterMode(display=False)
    # fused attention has no formula on the CPU and another one on every device
    with sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return counter.get_total_flops()


@dataclass(frozen=True)
class FlopsByLength:
    """Operations of a batch of r rows of n tokens: f + g·n + r·(c + d·n + q·n²).

    That is exact for transformers with a prompt of fixed length: attention is the square, f and g
    are what is done once for all rows, such as making prompts or rotating positions.
    """

    f: float
    g: float
    c: float
    d: float
    q: float

    @classmethod
    def fit(cls, count: Callable[[int, int], int]) -> FlopsByLength:
        """Solve for the five terms.

        Args:
            count: (rows, length) -> the operations of such a batch, counted.
        """
        terms = [[1, n, r, r * n, r * n * n] for r, n in _COUNTED_AT]
        found = np.linalg.solve(
            np.array(terms, dtype=float), [float(count(r, n)) for r, n in _COUNTED_AT]
        )
        return cls(*found.tolist())

    def of(self, lengths: Sequence[int]) -> float:
        """Operations of one batch.

        Args:
            lengths: what each of its rows is computed at, in tokens.
        """
        n = np.asarray(lengths, dtype=float)
        return float(self.f + self.g * n.max() + (self.c + self.d * n + self.q * n * n).sum())
