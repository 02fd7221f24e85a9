"""On which kinds of models soft prompts were seen to be right: a table, not a guess.

`tools/verify_backbones.py` makes it by comparing tiny models of every type with a reference built
by hand.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_smop.errors import ConfigError
from peft_smop.rows import BASE, calling
from peft_smop.tuner.backbone import Backbone
from peft_smop.tuner.call import PromptCall
from peft_smop.tuner.layer import SMoPLayer
from peft_smop.tuner.reading import evaluating

TABLE = Path(__file__).with_name("verified.json")
_TOKENS = 3
"""Tokens by which a head is tried."""


@cache
def verified() -> dict[str, dict[str, Any]]:
    """By model type, then by kind of model, what came out."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def kinds_of(model: PreTrainedModel, backbone: Backbone) -> tuple[str, ...]:
    """The kinds in the table that speak for this model, the nearest first."""
    if type(model).__name__.endswith("ForSequenceClassification"):
        return ("SEQ_CLS",)
    if backbone.decoder is not None:
        return ("SEQ_2_SEQ_LM",)
    if backbone.predicts_next:
        return ("CAUSAL_LM",)
    # other heads read the states that these two do
    return ("FEATURE_EXTRACTION", "SEQ_CLS")


def check_verified(model: PreTrainedModel, backbone: Backbone) -> None:
    """Refuse a model on which prompts are not known to be right.

    Raises:
        ConfigError: with what is known, and the switch that overrules it.
    """
    model_type = model.config.model_type
    found = verified().get(model_type, {})
    known = [found[kind] for kind in kinds_of(model, backbone) if kind in found]
    if known and known[0]["outcome"] == "right":
        return
    said = f"prompts are not right on it: {known[0]['why']}" if known else "nobody has tried"
    if known and known[0]["outcome"] == "not built":
        said = f"it could not be tried ({known[0]['why']})"
    raise ConfigError(
        f"{type(model).__name__} (model type {model_type!r}): {said}; to adapt it all the same, and"
        " check for yourself, set unverified=True"
    )


def check_reads_first(model: nn.Module, backbone: Backbone, layer: SMoPLayer | None) -> None:
    """Refuse a model whose head would not read a mean that stands in the first token's place.

    Found by the gradient of what the head says of a few tokens.

    Args:
        model: what an adapter is made for.
        backbone: within the model.
        layer: the adapters that it has already; None: none.

    Raises:
        ConfigError: it has no classification head, or one that reads other states.
    """
    name = type(model).__name__
    what = f"pooling='mean' is for encoders whose head reads the first token; {name}"
    if model is backbone.module or backbone.decoder is not None:
        raise ConfigError(f"{what} has no such head: leave pooling out")
    weight = backbone.embedding.weight
    if weight.is_meta and not hasattr(backbone.embedding, "_hf_hook"):
        return  # there are shapes but no values
    ids = (torch.arange(1, _TOKENS + 1, device=weight.device) % len(weight))[None]
    bare = nullcontext() if layer is None else calling(PromptCall(layer, [BASE]))
    with evaluating(model), torch.enable_grad(), bare, _held(backbone) as held:
        logits = getattr(model(input_ids=ids), "logits", None)
        if logits is None or logits.dim() != 2:
            raise ConfigError(f"{what} has no such head: leave pooling out")
        grads = torch.autograd.grad(logits.float().sum(), held, allow_unused=True)
    read = [grad for grad in grads if grad is not None]
    # a pooler that is handed a single state is handed the first
    if not read or any(bool(grad[:, 1:].any()) for grad in read if grad.dim() == 3):
        raise ConfigError(f"{what}'s reads others: leave pooling out")


@contextmanager
def _held(backbone: Backbone) -> Iterator[list[Tensor]]:
    """The states that a head may read, a pooler's within the backbone too, as leaves of a graph."""
    held: list[Tensor] = []
    ours = threading.get_ident()  # others may be served meanwhile

    def hold(states: Tensor) -> Tensor:
        if threading.get_ident() != ours:
            return states
        held.append(states.detach().requires_grad_())
        return held[-1]

    def before_pooler(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (hold(args[0]), *args[1:])

    def after_backbone(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not hasattr(output, "get"):
            return (hold(output[0]), *output[1:])
        output["last_hidden_state"] = hold(output["last_hidden_state"])
        return output

    handles = [backbone.module.register_forward_hook(after_backbone)]
    if backbone.pooler is not None:
        handles.append(backbone.pooler.register_forward_pre_hook(before_pooler))
    try:
        yield held
    finally:
        for handle in handles:
            handle.remove()
