"""Rows under several prompts of their adapter, before they are trained on: posteriors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError
from peft_smop.rows import current
from peft_smop.tuner.admission import check_input
from peft_smop.tuner.call import Judged, PromptCall
from peft_smop.tuner.deciding import router_logits
from peft_smop.tuner.layer import Adapter, SMoPLayer
from peft_smop.tuner.noise import embedding_fingerprints, fingerprints, row_keys, uniform
from peft_smop.tuner.passes import label_counts, losses_of_rows
from peft_smop.tuner.posterior import Posterior

_JUDGED_DRAW, _TRIED_DRAW = 2**20, 2**20 + 1
"""The draws by which rows, and prompts for them, are chosen: unlike any that routes them."""


@dataclass(frozen=True)
class _Judged:
    """What was found of one adapter's rows of one batch."""

    rows: Int[Tensor, "m"]
    losses: Float[Tensor, "m k"]
    tokens: Float[Tensor, "m"]
    logits: Float[Tensor, "m k"]


def posteriors(
    layer: SMoPLayer, batches: Sequence[Mapping[str, Any]], names: Sequence[Sequence[str] | None]
) -> list[Float[Tensor, "b k"] | None]:
    """Every row's posterior, balanced over all the batches' rows of its adapter.

    Args:
        layer: the adapters.
        batches: the parts of one step, each as the model takes it, with labels.
        names: an adapter for every row of each; None: all follow the active one.

    Returns:
        For every batch: NaN for rows that were not judged; None where none of it was.
    """
    of_adapter: dict[str, list[tuple[int, Tensor]]] = {}
    for place, (batch, own) in enumerate(zip(batches, names, strict=True)):
        for name, rows in _rows_by_adapter(layer, batch, own).items():
            if _is_due(layer[name]):
                of_adapter.setdefault(name, []).append((place, rows))
    found: dict[str, list[tuple[int, _Judged]]] = {}
    for name, candidates in of_adapter.items():
        for place, rows in _chosen(layer[name], batches, candidates):
            one = _judge(layer, name, batches[place], rows, names[place])
            found.setdefault(name, []).append((place, one))
    # wide enough for every adapter, judged in this part or not
    judging = [one for one in layer.adapters().values() if one.strategy.judges]
    width = max((one.prompts.shape[0] for one in judging), default=0)
    made: list[Tensor | None] = [None] * len(batches)
    for name, parts in found.items():
        adapter = layer[name]
        strategy = adapter.strategy
        assert isinstance(strategy, Posterior)
        judged = [one for _, one in parts]
        with torch.no_grad():
            q = strategy.posterior(
                torch.cat([one.losses for one in judged]),
                torch.cat([one.tokens for one in judged]),
                torch.cat([one.logits for one in judged]),
                adapter.usage,
            )
            adapter.note_usage(q)
        k = q.shape[1]
        for (place, one), own_q in zip(parts, q.split([len(o.rows) for o in judged]), strict=True):
            table = made[place]
            if table is None:
                table = q.new_full((len(batches[place]["labels"]), width), math.nan)
            table[one.rows, :k] = own_q
            made[place] = table
    return made


def posterior_of(
    layer: SMoPLayer, call: PromptCall, given: Mapping[str, Any]
) -> Float[Tensor, "b k"] | None:
    """Judge the rows of a training pass, where their strategies ask for it.

    Args:
        layer: the adapters.
        call: whose rows they are.
        given: the model's arguments by name.

    Raises:
        ConfigError: there are no labels to judge by, or the pass could not be computed.
    """
    if not layer.training or layer.disable_adapters or call.decides_once or call.draw:
        return None
    named = call.adapter_names if call.adapter_names is not None else layer.active_adapters
    if not any(name in layer and layer[name].strategy.judges for name in named):
        return None
    known = current(layer, Judged)
    if known is not None:
        return known.posterior
    if call.labels is None:
        raise ConfigError(
            "routing='posterior' learns from the labels, which did not reach the model (label"
            " smoothing and losses computed outside take them away); pass labels to the model"
        )
    _check(layer, call, given)
    return posteriors(layer, [given], [call.adapter_names])[0]


def _check(layer: SMoPLayer, call: PromptCall, given: Mapping[str, Any]) -> None:
    """Refuse what the pass itself would, before rows are looked at.

    Raises:
        ConfigError: with what to give instead.
    """
    x = given.get("inputs_embeds")
    tokens = given.get("input_ids") if x is None else x
    if tokens is None:
        raise ConfigError(
            "routing='posterior' reads the texts before the pass; give input_ids or inputs_embeds"
            " with the labels"
        )
    assert call.labels is not None
    if len(call.labels) != len(tokens):
        raise ConfigError(
            f"labels have {len(call.labels)} rows for {len(tokens)} rows of input; give one each"
        )
    rows = call.rows_of(len(tokens))
    if rows is not None:
        check_input(
            given,
            layer.hooks.backbone,
            past=0,
            rows=len(tokens),
            tokens=tokens.shape[1],
            width=layer.width(rows),
        )


def _rows_by_adapter(
    layer: SMoPLayer, batch: Mapping[str, Any], names: Sequence[str] | None
) -> dict[str, Int[Tensor, "r"]]:
    labels = batch["labels"]
    if names is None:
        return {layer.active_adapters[0]: torch.arange(len(labels), device=labels.device)}
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name in layer:
            rows.setdefault(name, []).append(i)
    return {name: torch.tensor(own, device=labels.device) for name, own in rows.items()}


def _is_due(adapter: Adapter) -> bool:
    """Whether this is a step at which the adapter's rows are judged."""
    strategy = adapter.strategy
    if not isinstance(strategy, Posterior) or strategy.exact:
        return False
    return strategy.every == 1 or int(adapter.steps) % strategy.every == 0


def _chosen(
    adapter: Adapter,
    batches: Sequence[Mapping[str, Any]],
    candidates: Sequence[tuple[int, Tensor]],
) -> list[tuple[int, Tensor]]:
    """The share of a step's rows that is judged: by what they say and the step, wherever they are.

    Args:
        adapter: whose.
        batches: the parts of the step.
        candidates: its rows (r,) in each part, with the part's place.
    """
    strategy = adapter.strategy
    assert isinstance(strategy, Posterior)
    if strategy.judged == 1:
        return list(candidates)
    chosen = []
    for place, rows in candidates:
        # row by row, so that it does not matter how a step is divided
        keys = _keys(adapter, batches[place], _JUDGED_DRAW)[rows]
        chosen.append((place, rows[uniform(keys, 1)[:, 0] < strategy.judged]))
    return [(place, rows) for place, rows in chosen if len(rows)]


def _judge(
    layer: SMoPLayer,
    name: str,
    batch: Mapping[str, Any],
    rows: Int[Tensor, "r"],
    names: Sequence[str] | None,
) -> _Judged:
    """Put some of one adapter's rows under several of its prompts."""
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
        adapter_names=None if names is None else [name] * (len(rows) * count),
        # a pass without gradient keeps nothing for the way back
        chunk=2 * max(len(batch["labels"]), count),
    )
    # what is not a number is no answer, which is another thing than a prompt that was not tried
    found = found.nan_to_num(nan=math.inf, posinf=math.inf)
    losses = torch.full_like(logits, math.nan).scatter(1, tried, found.view_as(tried))
    tokens = label_counts(batch["labels"], predicts_next=predicts_next)[rows]
    return _Judged(rows, losses, tokens, logits)


def _keys(adapter: Adapter, batch: Mapping[str, Any], draw: int) -> Int[Tensor, "b"]:
    ids, x, mask = (batch.get(key) for key in ("input_ids", "inputs_embeds", "attention_mask"))
    attended = None if mask is None else mask != 0
    said = embedding_fingerprints(x, attended) if ids is None else fingerprints(ids, attended)
    return row_keys(adapter.seed[None], adapter.steps[None], said, draw)
