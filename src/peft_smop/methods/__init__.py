"""Name to adapted model: backbones, methods, saved adapters."""

from peft_smop.methods.adapters import check_adapter, load_adapter, read_config
from peft_smop.methods.backbones import (
    DEFAULT_MODEL,
    LoadedBackbone,
    default_device,
    load_backbone,
)
from peft_smop.methods.catalogue import (
    METHODS,
    Method,
    MethodSpec,
    ParameterCount,
    Setting,
    build,
    can_pack,
    configure,
    method_of,
    prompts_to_choose,
    virtual_tokens,
)

__all__ = [
    "DEFAULT_MODEL",
    "METHODS",
    "LoadedBackbone",
    "Method",
    "MethodSpec",
    "ParameterCount",
    "Setting",
    "build",
    "can_pack",
    "check_adapter",
    "configure",
    "default_device",
    "load_adapter",
    "load_backbone",
    "method_of",
    "prompts_to_choose",
    "read_config",
    "virtual_tokens",
]
