"""Which modules end the sub-layers of a transformer block, by model type."""

from __future__ import annotations

from typing import NamedTuple

from peft_smop.errors import ConfigError

PLACEMENTS = ("houlsby", "pfeiffer")


class SubLayers(NamedTuple):
    """The ends of the names of a block's two output projections, as regular expressions.

    A decoder's cross-attention has none: of its block, self-attention is adapted.
    """

    attention: str
    feed_forward: str


_T5 = SubLayers(r"SelfAttention\.o", r"DenseReluDense\.wo")
_BART = SubLayers(r"self_attn\.out_proj", r"fc2")
_LLAMA = SubLayers(r"self_attn\.o_proj", r"mlp\.down_proj")
# attention.output.dense ends with output.dense as well: the block's number tells them apart
_BERT = SubLayers(r"layer\.\d+\.attention\.output\.dense", r"layer\.\d+\.output\.dense")

SUB_LAYERS = {
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "bart": _BART,
    "opt": _BART,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gpt2": SubLayers(r"attn\.c_proj", r"mlp\.c_proj"),
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": SubLayers(r"attention\.out_lin", r"ffn\.lin2"),
}


def target_pattern(model_type: str, placement: str) -> str:
    """The regular expression that the full names of the modules to adapt match.

    Args:
        model_type: as in the configuration of a transformers model.
        placement: one of `PLACEMENTS`.

    Raises:
        ConfigError: the model type is not in the table.
    """
    sub_layers = SUB_LAYERS.get(model_type)
    if sub_layers is None:
        raise ConfigError(
            f"target_modules=None has no meaning for model type {model_type!r}; give"
            " target_modules, the names of the linear modules that end its attention and"
            " feed-forward sub-layers"
        )
    chosen = sub_layers if placement == "houlsby" else (sub_layers.feed_forward,)
    return rf"(.*\.)?({'|'.join(chosen)})"
