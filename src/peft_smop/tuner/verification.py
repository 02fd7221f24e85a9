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

    Args:
        model: what an adapter is made for.
        backbone: within the model.
        layer: the adapters that it has already; None: none.

    Raises:
        ConfigError: it has no classification head, or one that reads other states.
    """
    why = _reads_otherwise(model, backbone, layer)
    if why is not None:
        raise ConfigError(
            f"pooling='mean' is for encoders whose head reads the first token;"
            f" {type(model).__name__}{why}: leave pooling out"
        )


def reads_first(model: nn.Module) -> bool:
    """Whether a model has a classification head that reads the first token's state alone.

    Args:
        model: bare, or with adapters in it.

    Raises:
        ConfigError: no adapter can be made for the model.
    """
    layer = next((part for part in model.children() if isinstance(part, SMoPLayer)), None)
    backbone = Backbone.of(model) if layer is None else layer.hooks.backbone
    return _reads_otherwise(model, backbone, layer) is None


def _reads_otherwise(model: nn.Module, backbone: Backbone, layer: SMoPLayer | None) -> str | None:
    """What a head does instead of reading the first token's state, as the end of a sentence.

    Found by moving the states of a few tokens, and looking at what the head says then. None: it
    reads the first; nothing can be told of a model that has shapes but no values.
    """
    if model is backbone.module or backbone.decoder is not None:
        return " has no such head"
    weight = backbone.embedding.weight
    if weight.is_meta and not hasattr(backbone.embedding, "_hf_hook"):
        return None
    # hooks of offloaded weights move what they are given
    device = "cpu" if weight.is_meta else weight.device
    ids = (torch.arange(1, _TOKENS + 1, device=device) % len(weight))[None]
    unseen = nullcontext() if layer is None else layer.unseen()
    said = []
    with evaluating(model), torch.no_grad(), unseen, _no_zeros(model, backbone):
        for moved in (slice(0, 0), slice(1, None), slice(0, 1)):
            bare = nullcontext() if layer is None else calling(PromptCall(layer, [BASE]))
            with bare, _moved(backbone, moved):
                logits = getattr(model(input_ids=ids, return_dict=True), "logits", None)
            if logits is None or logits.dim() != 2:
                return " has no such head"
            said.append(logits.float())
    plain, others, first = said
    if not plain.isfinite().all():
        return "'s says nothing finite"
    if not torch.allclose(plain, others):
        return "'s reads others"
    if torch.allclose(plain, first):
        return "'s says the same whatever it reads"
    return None


@contextmanager
def _no_zeros(model: nn.Module, backbone: Backbone) -> Iterator[None]:
    """Values in the weights of a head that starts from zeros, which would show nothing."""
    within = {id(p) for p in backbone.module.parameters()}
    zeros = [
        p
        for p in model.parameters()
        if id(p) not in within and p.dim() > 1 and not p.is_meta and not p.any()
    ]
    try:
        for p in zeros:
            p.copy_(_noise(p.shape))
        yield
    finally:
        for p in zeros:
            p.zero_()


def _noise(shape: torch.Size) -> Tensor:
    """The same whenever it is asked for, without drawing from torch's own generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def _moved(backbone: Backbone, places: slice) -> Iterator[None]:
    """Move states at some places before a head reads them, a pooler's within the backbone too."""
    ours = threading.get_ident()  # others may be served meanwhile

    def move(states: Tensor) -> Tensor:
        if threading.get_ident() != ours:
            return states
        # a pooler that is handed a single state is handed the first
        found = states.clone() if states.dim() == 3 else states[:, None].clone()
        # as wide as the states are: less is rounded away in half precision
        width = found.float().square().mean().sqrt()
        found[:, places] += (_noise(found.shape).to(found.device) * width).to(found)[:, places]
        return found if states.dim() == 3 else found[:, 0]

    def before_pooler(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (move(args[0]), *args[1:])

    def after_backbone(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not hasattr(output, "get"):
            return (move(output[0]), *output[1:])
        output["last_hidden_state"] = move(output["last_hidden_state"])
        return output

    handles = [backbone.module.register_forward_hook(after_backbone)]
    if backbone.pooler is not None:
        handles.append(backbone.pooler.register_forward_pre_hook(before_pooler))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
