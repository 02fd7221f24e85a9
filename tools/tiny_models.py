"""Tiny random models of every model type that transformers knows, for checks of the tuner.

A configuration is shrunk by the names of its fields, which are much the same everywhere; what is
peculiar to a type stands in `OVERRIDES`. Weights are drawn larger than at a real start: with the
usual spread of 0.02 two layers hardly change their input, and no check would notice a wrong
position.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto

VOCABULARY = 100
LARGEST = 3_000_000
"""Parameters of a model that still counts as tiny; a larger one was not shrunk."""
SPREAD = 0.2
SPREADS = {"mobilebert": 0.08}
"""Where layers without a normalisation would answer with huge numbers."""

CAUSAL, SEQ2SEQ, CLASSES, STATES = "CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "FEATURE_EXTRACTION"
KINDS = (CAUSAL, SEQ2SEQ, CLASSES, STATES)

# the first pattern that a field's whole name matches gives its value
_SIZES: list[tuple[str, Any]] = [
    (r"rotary_dim", 4),
    (r"encoder_hash_byte_group_vocab|vocab_size_per_layer_input", VOCABULARY),
    (
        r"hidden_size|d_model|n_embd|dim|embed_dim|emb_dim|d_embed|model_dim|word_embed_proj_dim"
        r"|projection_dim|hidden_dim|text_hidden_size|lru_width|embed_size|output_hidden_size"
        r"|out_hidden_size|decoder_hidden_size|encoder_hidden_size|dim_model|n_embed",
        32,
    ),
    (r"(num_)?(hidden_|encoder_|decoder_)?layers|n_layers?|depth|num_blocks", 2),
    (r".*(num_key_value_heads|num_kv_heads|n_head_kv|kv_n_heads|num_key_value_groups)", 2),
    (r"mamba_(num|n)_heads", 4),
    (r"mamba_(d_head|head_dim|headdim)", 16),
    (r"linear_num_key_heads", 2),
    (
        r"(.*_)?num_(attention_)?heads|n_heads?|(encoder|decoder)_attention_heads|.*num_value_heads",
        4,
    ),
    (r"qk_head_dim", 16),
    (r".*head_dim|d_kv|dim_head|attention_head_size|kv_channels|attention_key_size|key_size", 8),
    (r"index_n_heads", 4),
    (r"index_topk", 64),
    (r".*lora_rank|o_lora_rank", 16),
    (r"(mamba_|ssm_)?(d_state|state_size)|ssm_state_size", 8),
    (r"(mamba_)?n_groups|mamba_ngroups|n_group|topk_group|num_expert_group", 1),
    (r"(mamba_)?chunk_size|attention_chunk_size", 8),
    (r"moe_intermediate_size|.*expert.*(intermediate|ffn)_size|moe_ffn_hidden_size", 32),
    (
        r".*intermediate_size|.*ffn_dim|d_ff|.*ffn_hidden_size|d_inner|dim_ff|dim_ffn"
        r"|feed_forward_size|n_inner|.*mlp_dim|.*ffn_size",
        64,
    ),
    (r"(num|n|moe_num|num_local|n_routed|num_routed|routed)_experts", 4),
    (r"num_local_experts|n_routed_experts|moe_num_experts|num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_topk|num_selected_experts|top_k_experts", 2),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index|n_shared_experts", 1),
    (r"num_nextn_predict_layers|.*mtp.*layers", 0),
    (r"attention_window|local_attention|window_size", 4),
    # two layers of it must still reach from a row's last token to its prompt
    (r".*sliding_window|attention_window_size", 5),
    (r"expert_capacity", 64),
    (r".*vocab_size.*|n_words", VOCABULARY),
    (r".*max_.*position.*|n_positions|n_ctx|max_seq_len.*|max_source_.*|max_target_.*", 64),
    (r"image_size|input_size", 32),
    (r"patch_size", 16),
    (r"num_mel_bins", 16),
]
_SPECIAL = {"pad": 0, "bos": 1, "eos": 2, "cls": 1, "sep": 2, "decoder_start": 0, "unk": 3}
_DROPOUT = re.compile(r".*(dropout|drop_prob|pdrop|layerdrop|drop_path|jitter|drop_rate).*")

_MROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [2, 1, 1],
    "partial_rotary_factor": 1.0,
}
_TWO = ["linear_attention", "full_attention"]
_SLIDING = ["sliding_attention", "full_attention"]
_HYBRID = ["linear_attention", "hybrid"]

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": 16, "layers_block_type": ...},
    "blt": {"use_cache": False},
    "cohere_compass_text": {
        "layer_types": _SLIDING,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in _SLIDING
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 64, "moe_top_k": 2},
    },
    **{
        f"{family}_text": {"rope_parameters": _MROPE}
        for family in (
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen2_5_omni",
            "glm4v",
            "glm4v_moe",
            "glm_ocr",
            "glmga",
            "paddleocr_vl",
        )
    },
    "deberta": {"pooler_hidden_size": 32},
    "deberta-v2": {"pooler_hidden_size": 32},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"head_dim": 16},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 3},
    "dots3_note": {"adapter_in_dim": 32},
    "esmc": {"num_key_value_heads": 4, "vocab_size": VOCABULARY},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16, "mamba_n_heads": 4},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": _SLIDING * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
        "intermediate_size": [64] * 4,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 8},
    "gemma4_unified_text": {"hidden_size_per_layer_input": 8},
    "granitemoehybrid": {"layer_types": _TWO, "mamba_n_heads": 4, "mamba_d_head": 16},
    "hrm_text": {"num_layers_per_stack": ...},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 4,
        "layers_block_type": ...,
    },
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 48},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "ministral": {"head_dim": 8},
    "hunyuan_vl_text": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "neomme": {
        "head_dim": 16,
        "embedding_rank": 16,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    },
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 1},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": VOCABULARY,
        "make_ngram_vocab_size_divisible_by": 4,
        "split_ngram_parts": 1,
        "hc_lowrank": 8,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 5},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
        "hash_seed": 0,
    },
    "rwkv": {"attention_hidden_size": 32},
    "xlnet": {"d_head": 8},
    # widths are rounded up to 64; behind a second chunk it cannot be trained
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "chunk_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": _HYBRID * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "n_mamba_heads": 2,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": _HYBRID * 2,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_mem_blocks": 1,
        "hybrid_layer_ids": ...,
    },
}
"""What the general rules do not know, by model type (of the configuration or of a part of it).

`...` leaves a field to the configuration.
"""


def _size(name: str, value: Any) -> Any:
    """A field's tiny value, or the one it has."""
    if isinstance(value, float) and _DROPOUT.fullmatch(name):
        return 0.0
    if name.endswith(("_token_id", "_token_index")):
        found = value[0] if isinstance(value, list) and value else value
        if isinstance(found, int) and found >= VOCABULARY:
            return _SPECIAL.get(name.removesuffix("_token_id"), VOCABULARY - 1)
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    for pattern, tiny in _SIZES:
        if re.fullmatch(pattern, name):
            return min(value, tiny) if value > 0 else value
    return value


def _picks(layers: list[Any]) -> list[int]:
    """Which layers to keep so that every kind of layer is there; at least two."""
    first = {str(kind): place for place, kind in reversed(list(enumerate(layers)))}
    places = sorted(first.values())
    return places if len(places) > 1 else list(range(min(2, len(layers))))


def shrunk(fields: dict[str, Any]) -> dict[str, Any]:
    """A configuration's fields, and those of its parts, made tiny."""
    layers = next(
        (
            n
            for n in ("num_hidden_layers", "n_layer", "num_layers")
            if isinstance(fields.get(n), int)
        ),
        None,
    )
    count = fields.get(layers) if layers else None
    types = fields.get("layer_types") or fields.get("layers_block_type")
    keep = _picks(types) if isinstance(types, list) and types else [0, 1]
    tiny = {}
    for name, value in fields.items():
        if name in ("transformers_version", "architectures", "_name_or_path"):
            continue
        if isinstance(value, dict) and "model_type" in value:
            tiny[name] = shrunk(value)
        elif name == "per_layer_config" and isinstance(value, dict):
            old = {int(place): shrunk(part) for place, part in value.items()}
            tiny[name] = {new: old[place] for new, place in enumerate(keep) if place in old}
        elif name in ("embedding_size", "embedding_dim") and isinstance(value, int):
            tiny[name] = 32 if value == fields.get("hidden_size") else 16
        elif name == "rope_scaling" or (name == "rope_parameters" and isinstance(value, dict)):
            tiny[name] = _rope(value)
        elif isinstance(value, list) and count and len(value) == count and count > 2:
            tiny[name] = [value[i] for i in keep]
        else:
            tiny[name] = _size(name, value)
    if layers and isinstance(types, list) and types:
        tiny[layers] = len(keep)
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:
        tiny["num_key_value_heads"] = 4  # latent attention has no groups
    tiny.update(OVERRIDES.get(fields.get("model_type", ""), {}))
    return {name: value for name, value in tiny.items() if value is not ...}


def _rope(value: Any) -> Any:
    """Rotary settings without factors for a length that is not there."""
    if not isinstance(value, dict):
        return value
    if value and all(isinstance(part, dict) or part is None for part in value.values()):
        return {name: _rope(part) for name, part in value.items()}
    names = ("rope_theta", "partial_rotary_factor", "rope_type", "llama_4_scaling_beta")
    kept = {k: v for k, v in value.items() if k in names}
    if "llama_4_scaling_beta" in kept:
        kept["original_max_position_embeddings"] = 8
    if kept.get("rope_type") not in ("proportional",):
        kept["rope_type"] = "default"
    if "mrope_section" in value:
        kept["mrope_section"] = [2, 1, 1]
        kept |= {k: v for k, v in value.items() if k == "mrope_interleaved"}
    return kept


def tiny_config(model_type: str, kind: str) -> PretrainedConfig:
    """The type's own configuration, shrunk, without dropout, a decoder where a decoder is meant."""
    kind_of = CONFIG_MAPPING[model_type]
    fields = kind_of().to_dict()
    fields["model_type"] = model_type
    fields = shrunk(fields)
    fields.pop("model_type", None)
    config = kind_of(**fields)
    for part in (config, *(getattr(config, n, None) for n in getattr(config, "sub_configs", {}))):
        if not isinstance(part, PretrainedConfig):
            continue
        if kind == CAUSAL and getattr(part, "is_decoder", None) is False:
            part.is_decoder = True
        if getattr(part, "pad_token_id", None) is None:
            part.pad_token_id = 0
        if part.is_encoder_decoder and getattr(part, "decoder_start_token_id", None) is None:
            part.decoder_start_token_id = part.pad_token_id
    return config


def build(model_type: str, kind: str, name: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model in fp32 that answers alike every time.

    Raises:
        ValueError: the rules above left it large.
    """
    config, made = tiny_config(model_type, kind), getattr(transformers, name)
    if not isinstance(config, made.config_class):
        parts = [getattr(config, part, None) for part in config.sub_configs]
        config = next((part for part in parts if isinstance(part, made.config_class)), config)
    with torch.device("meta"):
        try:
            large = sum(p.numel() for p in made(config).parameters())
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error).lower():
                raise
            large = 0
    if large > LARGEST:
        raise ValueError(f"still {large:,} parameters when shrunk")
    torch.manual_seed(seed)
    model = made(config).float()
    _enlarge(model, SPREADS.get(model_type, SPREAD), seed)
    if model.can_generate():
        for name in ("forced_eos_token_id", "forced_bos_token_id"):
            setattr(model.generation_config, name, None)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for attribute in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    return model.eval()


def _enlarge(model: nn.Module, wanted: float, seed: int) -> None:
    """Bring every matrix to a spread at which layers matter, and vectors of zeros away from it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point() or not parameter.dim():
                continue
            if any(mark in name for mark in ("A_log", "dt_", "time_", "conv")):
                continue
            drawn = torch.randn(parameter.shape, generator=generator) * wanted
            if parameter.dim() == 1 or "norm" in name:
                if not parameter.any():
                    parameter.copy_(drawn / 2)
                continue
            spread = parameter.float().std()
            if not torch.isfinite(spread) or spread < 1e-6:
                parameter.copy_(drawn)
            elif spread < wanted:
                parameter.mul_(wanted / spread)


def _single(name: Any) -> str:
    return name[0] if isinstance(name, tuple | list) else name


def candidates() -> dict[str, dict[str, str]]:
    """Every model type with its kinds and their classes."""
    causal, seq2seq = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    classes = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    found: dict[str, dict[str, str]] = {}
    for kind, mapping in ((CAUSAL, causal), (SEQ2SEQ, seq2seq), (CLASSES, classes)):
        for model_type, name in mapping.items():
            found.setdefault(model_type, {})[kind] = _single(name)
    for model_type, name in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        # asked without an image; what cannot be is not built
        if not found.get(model_type, {}).keys() & {CAUSAL, SEQ2SEQ}:
            found.setdefault(model_type, {})[CAUSAL] = _single(name)
    states = dict(auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES)
    for model_type in (*found, *auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        if model_type in auto.MODEL_MAPPING_NAMES:
            states.setdefault(model_type, _single(auto.MODEL_MAPPING_NAMES[model_type]))
    for model_type, name in seq2seq.items():
        own = _single(name).split("For")[0] + "EncoderModel"
        if hasattr(transformers, own):
            states[model_type] = own
    for model_type, name in states.items():
        # a whole encoder-decoder gives its decoder's states; only encoders alone are meant
        whole = getattr(CONFIG_MAPPING.get(model_type), "is_encoder_decoder", False)
        is_whole = model_type in seq2seq or whole is True
        if name and (not is_whole or name.endswith("EncoderModel")):
            found.setdefault(model_type, {})[STATES] = name
    return {model_type: found[model_type] for model_type in sorted(found)}
