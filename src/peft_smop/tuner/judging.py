"""Rows under several prompts of their adapter, before they are trained on: posteriors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError
from peft_smop.rows import RowAdapters
from peft_smop.tuner.admission import check_input, tokens_of
from peft_smop.tuner.call import PromptCall
from peft_smop.tuner.deciding import router_logits, routes_asked
from peft_smop.tuner.layer import Adapter, SMoPLayer
from peft_smop.tuner.noise import embedding_fingerprints, fingerprints, row_keys, uniform
from peft_smop.tuner.passes import label_counts, losses_of_rows
from peft_smop.tuner.posterior import Posterior
from peft_smop.tuner.reading import texts_of

_JUDGED_DRAW, _TRIED_DRAW = 2**20, 2**20 + 1
"""The draws by which rows, and prompts for them, are chosen: unlike any that routes them."""


def posterior_of(
    layer: SMoPLayer, call: PromptCall, given: Mapping[str, Any]
) -> Float[Tensor, "b k"] | None:
    """Judge rows of a training pass, where their strategies ask for it.

    Row by row, so that it does not matter how a step is divided into passes. A row that is asked to
    take a prompt is not judged.

    Args:
        layer: the adapters.
        call: whose rows they are.
        given: the model's arguments by name.

    Returns:
        NaN for rows that were not judged, and for prompts that a row's adapter does not have; None
        where no row was.

    Raises:
        ConfigError: there are no labels to judge by, or the pass could not be computed.
    """
    if not layer.training or layer.disable_adapters or call.decides_once or call.draw:
        return None
    named = call.adapter_names if call.adapter_names is not None else layer.active_adapters
    if not any(name in layer and layer[name].strategy.judges for name in named):
        return None
    labels = call.labels
    if labels is None:
        raise ConfigError(
            "routing='posterior' learns from the labels, which did not reach the model (label"
            " smoothing and losses computed outside take them away); pass labels to the model"
        )
    rows = _checked(layer, call, given, labels)
    all_behind = layer.all_behind(rows.names)
    call.texts = texts_of(layer, layer.hooks.backbone, given, labels, all_behind=all_behind)
    asked = routes_asked(layer, call, rows, labels.device)
    names = rows.name_of_each()
    found = {}
    for name in rows.names:
        if _is_due(layer[name]):
            own = torch.tensor([other == name for other in names], device=labels.device)
            chosen = _chosen(layer[name], given, own if asked is None else own & (asked < 0))
            if len(chosen):
                found[name] = chosen, _judge(layer, call, name, given, chosen)
    if not found:
        return None
    width = max(layer[name].prompts.shape[0] for name in rows.names)
    table = torch.full((len(labels), width), math.nan, device=labels.device)
    for chosen, q in found.values():
        table[chosen, : q.shape[1]] = q
    return table


def _checked(
    layer: SMoPLayer, call: PromptCall, given: Mapping[str, Any], labels: Tensor
) -> RowAdapters:
    """The pass's rows; refuse what the pass itself would, before they are looked at.

    Raises:
        ConfigError: with what to give instead.
    """
    tokens = tokens_of(given)
    if tokens is None:
        raise ConfigError(
            "routing='posterior' reads the texts before the pass; give input_ids or inputs_embeds"
            " with the labels"
        )
    if len(labels) != len(tokens):
        raise ConfigError(
            f"labels have {len(labels)} rows for {len(tokens)} rows of input; give one each"
        )
    rows = call.rows_of(len(tokens))
    assert rows is not None  # some row has an adapter
    count, length = tokens.shape[:2]
    width = layer.width(rows)
    check_input(given, layer.hooks.backbone, past=0, rows=count, tokens=length, width=width)
    return rows


def _is_due(adapter: Adapter) -> bool:
    """Whether this is a step at which the adapter's rows are judged."""
    strategy = adapter.strategy
    if not isinstance(strategy, Posterior) or strategy.exact:
        return False
    return strategy.every == 1 or int(adapter.steps) % strategy.every == 0


def _chosen(adapter: Adapter, batch: Mapping[str, Any], own: Bool[Tensor, "b"]) -> Int[Tensor, "m"]:
    """The rows that are judged: by what they say and the step, wherever they are."""
    strategy = adapter.strategy
    assert isinstance(strategy, Posterior)
    if strategy.judged < 1:
        own = own & (uniform(_keys(adapter, batch, _JUDGED_DRAW), 1)[:, 0] < strategy.judged)
    return own.nonzero()[:, 0]


def _judge(
    layer: SMoPLayer,
    call: PromptCall,
    name: str,
    batch: Mapping[str, Any],
    rows: Int[Tensor, "m"],
) -> Float[Tensor, "m k"]:
    """The posterior of some of one adapter's rows, which are put under several of its prompts."""
    adapter, predicts_next = layer[name], layer.hooks.backbone.predicts_next
    strategy = adapter.strategy
    assert isinstance(strategy, Posterior)
    logits = router_logits(layer, name, batch)[rows]
    tried = strategy.tried(logits, _keys(adapter, batch, _TRIED_DRAW)[rows])
    count = tried.shape[1]
    found = losses_of_rows(
        layer,
        batch,
        rows.repeat_interleave(count),
        tried.flatten(),
        adapter_names=None if call.adapter_names is None else [name] * tried.numel(),
        # a pass without gradient keeps nothing for the way back
        chunk=2 * max(len(batch["labels"]), count),
        texts=call.texts,
    )
    # what is not a number is no answer, which is another thing than a prompt that was not tried
    found = found.nan_to_num(nan=math.inf, posinf=math.inf)
    losses = torch.full_like(logits, math.nan).scatter(1, tried, found.view_as(tried))
    tokens = label_counts(batch["labels"], predicts_next=predicts_next)[rows].clamp(min=1)
    q = strategy.posterior(losses, tokens, logits, adapter.usage.float())
    adapter.note_usage(q)
    return q


def _keys(adapter: Adapter, batch: Mapping[str, Any], draw: int) -> Int[Tensor, "b"]:
    ids, x, mask = (batch.get(key) for key in ("input_ids", "inputs_embeds", "attention_mask"))
    attended = None if mask is None else mask != 0
    said = embedding_fingerprints(x, attended) if ids is None else fingerprints(ids, attended)
    return row_keys(adapter.seed[None], adapter.steps[None], said, draw)
