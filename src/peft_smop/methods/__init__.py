"""Name to adapted model: backbones, methods, saved adapters."""

from peft_smop.methods.adapters import (
    can_share,
    check_adapter,
    load_adapter,
    load_rows_adapter,
    read_config,
)
from peft_smop.methods.backbones import (
    LoadedBackbone,
    default_device,
    fold_head,
    load_backbone,
    load_tokenizer,
    precision,
)
from peft_smop.methods.catalogue import (
    METHODS,
    OPTIONS,
    Method,
    MethodSpec,
    ParameterCount,
    Setting,
    build,
    can_pack,
    configure,
    method_of,
    virtual_tokens,
)
from peft_smop.methods.shapes import SHAPES, is_shape_only, random_backbone
from peft_smop.methods.sources import declared_pooling

__all__ = [
    "METHODS",
    "OPTIONS",
    "SHAPES",
    "LoadedBackbone",
    "Method",
    "MethodSpec",
    "ParameterCount",
    "Setting",
    "build",
    "can_pack",
    "can_share",
    "check_adapter",
    "configure",
    "declared_pooling",
    "default_device",
    "fold_head",
    "is_shape_only",
    "load_adapter",
    "load_backbone",
    "load_rows_adapter",
    "load_tokenizer",
    "method_of",
    "precision",
    "random_backbone",
    "read_config",
    "virtual_tokens",
]
