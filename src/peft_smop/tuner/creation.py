"""How an adapter is made of its configuration and the model that it is for."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from peft_smop.errors import ConfigError
from peft_smop.tuner.backbone import Backbone
from peft_smop.tuner.config import SMoPConfig
from peft_smop.tuner.initialisation import Start, initial_prompts, initial_router
from peft_smop.tuner.layer import Adapter
from peft_smop.tuner.parameterisation import PARAMETERISATIONS
from peft_smop.tuner.posterior import ROUTER_GAIN
from peft_smop.tuner.saved import settings_of

MOST_NUMBERS = 2**31
"""Numbers in an adapter's prompts beyond which its configuration is taken for a mistake: 8 GiB."""


def created(
    model: nn.Module,
    backbone: Backbone,
    config: SMoPConfig,
    *,
    low_cpu_mem_usage: bool,
) -> Adapter:
    """Create one adapter with its start.

    Args:
        model: what it is for.
        backbone: within the model.
        config: of the adapter; what was read of a tokenizer is remembered in it.
        low_cpu_mem_usage: whether values are to be loaded, so that shapes are enough.

    Raises:
        ConfigError: it is too large, its rank exceeds the embedding's width, or this kind of model
            has no such position or scope.
    """
    text_config = model.config.get_text_config()
    special = {
        value
        for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
        for value in _as_list(getattr(text_config, key, None))
    }
    start = Start(config, backbone.embedding, special, getattr(model, "name_or_path", None))
    strategy = config.strategy()
    if config.rank is not None and config.rank > start.width:
        raise ConfigError(
            f"rank={config.rank} exceeds the embedding's width {start.width}; lower rank"
        )
    if start.k * (start.l + strategy.has_router) * start.width > MOST_NUMBERS:
        raise ConfigError(
            f"num_prompts={start.k} prompts of {start.l} virtual tokens, each {start.width} wide,"
            " exceed 8 GiB; lower num_prompts or num_virtual_tokens"
        )
    with init_empty_weights() if low_cpu_mem_usage else nullcontext():
        prompts = initial_prompts(start)
        router = initial_router(start) if strategy.has_router else None
        size = config.hidden_size if config.rank is None else config.rank
        stored, network = PARAMETERISATIONS[config.parameterisation].of(
            prompts, size, start.generator
        )
        adapter = Adapter(
            stored,
            router,
            strategy=strategy,
            seed=config.seed,
            scope=_scope(config, predicts_next=backbone.predicts_next, model=model),
            position=config.position,
            pooling=config.pooling,
            network=network,
            penalties=config.penalties(),
            awaited=low_cpu_mem_usage or config.awaits_values,
            gain=ROUTER_GAIN / start.spread,
            settings=settings_of(config, strategy),
        )
    if config.awaits_values and not low_cpu_mem_usage:
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.fill_(float("nan"))  # what never arrives must not look like a start
    config.is_initialised = True
    return adapter


def _scope(config: SMoPConfig, *, predicts_next: bool, model: nn.Module) -> Any:
    """What the router reads of this kind of model's rows.

    Raises:
        ConfigError: the model sees no answers in its input.
    """
    if config.position == "after" and not predicts_next:
        raise ConfigError(
            "position='after' is for causal LMs, where an answer follows the text;"
            f" {type(model).__name__} gives none: leave it out"
        )
    if config.router_scope is None:
        return "context" if predicts_next else "input"
    if config.router_scope == "context" and not predicts_next:
        raise ConfigError(
            "router_scope='context' is for causal LMs, which see answers in their input;"
            f" {type(model).__name__} does not: leave it out"
        )
    return config.router_scope


def _as_list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]
