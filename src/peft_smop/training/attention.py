"""Which attention a training pass takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

EAGER_UP_TO = 128
"""Tokens of a text. What eager attention keeps for the way back grows with their square."""


@contextmanager
def fastest_attention(model: nn.Module, tokens: int) -> Iterator[None]:
    """Within, forward and backward of short texts take eager attention in bf16 on a CPU.

    SDPA's way back is slow there (`benchmarks/decoder.py`). Passes outside are as they were, those
    of evaluations among them: an adapter answers by the attention that it was tested with. Nobody
    else may use the model meanwhile.

    Args:
        model: bare, or in PEFT's and a trainer's wrappers.
        tokens: of the longest text.
    """
    inner = getattr(model, "module", model)
    base = inner.get_base_model() if isinstance(inner, PeftModel) else inner
    if tokens > EAGER_UP_TO or not _is_slow(base):
        yield
        return
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation("sdpa")


def _is_slow(base: nn.Module) -> bool:
    return (
        isinstance(base, PreTrainedModel)
        and base.device.type == "cpu"
        and base.dtype == torch.bfloat16
        and base.config._attn_implementation == "sdpa"
    )
