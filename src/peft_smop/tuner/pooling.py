"""What a classification head reads of an encoder: the first token's state, or the mean of all.

Heads read the state of `[CLS]`, which in a backbone that was never trained to gather a text there,
such as a sentence transformer, attends to itself alone in most layers. Weights that are trained can
change that; a prompt before a frozen backbone seldom does (`docs/results.md`). The mean is put in
the first token's place, so that the head stays the model's own.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Pooling = Literal["own", "mean"]
"""What a head reads: what it does by itself, or the mean of its text's states."""


def with_means(
    states: Float[Tensor, "b n d"],
    mask: Shaped[Tensor, "b n"] | None,
    is_mean: Bool[Tensor, "b"] | bool,
) -> Float[Tensor, "b n d"]:
    """The states with a row's mean where its first token's state was.

    Args:
        states: of the tokens, without any prompt's.
        mask: not 0 for the tokens that are attended, `[CLS]` and `[SEP]` among them; None: all.
        is_mean: the rows whose head is to read the mean; True, False: all, none.
    """
    if is_mean is False:
        return states
    # in fp32: a long text's sum is more than bf16 holds
    weights = torch.ones_like(states[:, :, 0]) if mask is None else mask != 0
    total = (states.float() * weights[:, :, None]).sum(dim=1)
    first = (total / weights.sum(dim=1, keepdim=True).clamp(min=1)).to(states.dtype)
    if is_mean is not True:
        first = torch.where(is_mean[:, None], first, states[:, 0])
    return torch.cat([first[:, None], states[:, 1:]], dim=1)
