"""Backbones by their shape alone: what something costs does not depend on trained weights."""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration
from transformers.utils import SAFE_WEIGHTS_NAME

SHAPES: dict[str, dict[str, int]] = {
    "t5-small": {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5-base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "t5-large": {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
}
"""T5 1.0 (Raffel et al., 2020), as published: 32,128 embeddings, tied, heads of width 64."""


def is_shape_only(name: str) -> bool:
    """Whether a model's shape is known here and its weights are not on this machine."""
    here = Path(name).is_dir() or isinstance(try_to_load_from_cache(name, SAFE_WEIGHTS_NAME), str)
    return name in SHAPES and not here


def random_backbone(name: str, *, drawn: bool = True) -> PreTrainedModel:
    """A backbone of a known shape with weights that were never trained.

    Args:
        name: a key of `SHAPES`.
        drawn: whether the weights are drawn at random; else their memory is left as it is, which
            takes no time, and is enough to count.
    """
    config = T5Config(**SHAPES[name], vocab_size=32_128, d_kv=64, decoder_start_token_id=0)
    if drawn:
        return T5ForConditionalGeneration(config)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    model.to_empty(device="cpu")
    model.tie_weights()
    return model
