"""Every row's prompt: the route that is asked for it, what is read of it, what is decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError
from peft_smop.rows import RowAdapters, current, on_device
from peft_smop.tuner.admission import check_input, tokens_of
from peft_smop.tuner.call import PromptCall, Routed
from peft_smop.tuner.layer import Adapter, SMoPLayer
from peft_smop.tuner.mixture import soft_prompts
from peft_smop.tuner.noise import content_of, row_keys
from peft_smop.tuner.routing import RowState
from peft_smop.tuner.scope import Scope, context_mask, first_tokens


def decided(
    layer: SMoPLayer,
    call: PromptCall,
    rows: RowAdapters,
    x: Float[Tensor, "b n e"],
    *,
    ids: Int[Tensor, "b n"] | None,
    mask: Tensor | None,
    labels: Tensor | None,
    answers_within: bool,
) -> Float[Tensor, "b l e"]:
    """Every row's scaled prompt in fp32; a generation's is decided once.

    Args:
        layer: the adapters.
        call: takes up what is decided.
        rows: which adapter each row follows.
        x: the tokens' embeddings.
        ids: the tokens; None: they were given as embeddings.
        mask: the attention mask of the tokens; None: all are attended.
        labels: of the pass; None: it has none.
        answers_within: whether answers stand in the input of this kind of backbone.

    Raises:
        ConfigError: a router could see an answer, a strategy lacks the tokens it reads, or there is
            no prompt that is asked for.
    """
    if call.prompts is not None:
        return call.prompts.repeat_interleave(len(x) // len(call.prompts), dim=0)
    own = [layer[name] for name in rows.names]
    routes = call.routes if call.routes is not None else routes_asked(layer, call, rows, x.device)
    with torch.autocast(x.device.type, enabled=False):
        read = readable(
            own,
            rows,
            None if mask is None else mask != 0,
            labels if answers_within else None,
            like=x,
            asks_for_labels=answers_within and not call.decides_once,
        )
        if ids is None and any(adapter.strategy.reads_content for adapter in own):
            raise ConfigError(
                "routing='hashed' hashes token ids; give input_ids, not inputs_embeds"
            )
        mean = mean_embedding(x, read)
        state = row_state(
            own,
            rows,
            partial(content_of, ids, x, read),
            training=layer.training,
            draw=call.draw,
        )._replace(posterior=call.posterior, asked=routes)
        prompts, call.decisions = soft_prompts(own, rows, mean, state)
    layer.last = (rows, tuple(decision.detached() for decision in call.decisions))
    if call.decides_once:
        call.prompts = prompts
    return prompts


def router_inputs(layer: SMoPLayer, name: str, batch: Mapping[str, Any]) -> Float[Tensor, "b e"]:
    """What one adapter's router reads of a batch's rows, without a pass of the backbone.

    Args:
        layer: the adapters.
        name: the adapter.
        batch: as the model takes it; a decoder's with labels, if there is an answer within.

    Raises:
        ConfigError: there are no tokens, or they have no one place for a prompt.
        CheckpointError: the adapter's tensors were never loaded.
    """
    backbone, adapter, mask = layer.hooks.backbone, layer[name], batch.get("attention_mask")
    tokens, x = tokens_of(batch), batch.get("inputs_embeds")
    if tokens is None:
        raise ConfigError("there is nothing to route by; give input_ids or inputs_embeds")
    rows, count = tokens.shape[:2]
    check_input(batch, backbone, past=0, rows=rows, tokens=count, width=adapter.length)
    adapter.check_arrived(name)
    device = adapter.prompts.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        x = backbone.embedding(tokens) if x is None else finite(x, mask)
        read = readable(
            [adapter],
            RowAdapters((name,), None, len(x)),
            None if mask is None else mask != 0,
            batch.get("labels") if backbone.predicts_next else None,
            like=x,
            asks_for_labels=backbone.predicts_next,
        )
        return mean_embedding(x, read)


def router_logits(layer: SMoPLayer, name: str, batch: Mapping[str, Any]) -> Float[Tensor, "b k"]:
    """What it says of them; arguments as above."""
    read = router_inputs(layer, name, batch)
    with torch.no_grad(), torch.autocast(read.device.type, enabled=False):
        return read @ layer[name].router_matrix()


def routes_asked(
    layer: SMoPLayer, call: PromptCall, rows: RowAdapters, device: torch.device
) -> Int[Tensor, "b"] | None:
    """The routes that a surrounding `Routed` asks for, row by row.

    Raises:
        ConfigError: there is not one for each row, or a row's adapter has no such prompt.
    """
    asked = current(layer, Routed)
    if asked is None:
        return None
    routes = [-1] * rows.count
    if asked.indices is not None:
        given = len(asked.indices)
        # a generate's rows may stand there several times, next to each other
        repeated = call.decides_once
        if given == 0 or rows.count % given or (given != rows.count and not repeated):
            raise ConfigError(
                f"routed() was given {given} routes for a batch of {rows.count} rows; give one"
                " for each row"
            )
        routes = asked.indices.repeat_interleave(rows.count // given).tolist()
    names = rows.name_of_each()
    routes = [asked.by_adapter.get(n, j) for n, j in zip(names, routes, strict=True)]
    counts = {name: layer[name].prompts.shape[0] for name in rows.names}
    for name, route in zip(names, routes, strict=True):
        if route >= counts.get(name, route + 1):
            raise ConfigError(
                f"prompt {route} was asked for, but adapter {name!r} has {counts[name]};"
                f" choose 0 to {counts[name] - 1}, or -1 for a row's own choice"
            )
    return on_device(routes, device)


def finite(x: Float[Tensor, "b n e"], mask: Tensor | None) -> Float[Tensor, "b n e"]:
    """A caller's embeddings, of which anything may stand under padding; times 0 it would stay."""
    return x if mask is None else x.masked_fill((mask == 0)[:, :, None] & ~x.isfinite(), 0)


def mean_embedding(
    x: Float[Tensor, "b n e"], mask: Bool[Tensor, "b n"] | None
) -> Float[Tensor, "b e"]:
    """The mean of the attended tokens' embeddings, in fp32: the router's input (section 2.2)."""
    if mask is None:
        return x.float().mean(dim=1)
    weights = mask.float()
    total = torch.bmm(weights[:, None, :], x.float())[:, 0, :]
    return total / weights.sum(dim=1, keepdim=True).clamp(min=1)


def readable(
    adapters: Sequence[Adapter],
    rows: RowAdapters,
    attended: Bool[Tensor, "b n"] | None,
    labels: Int[Tensor, "b *n"] | None,
    *,
    like: Float[Tensor, "b n e"],
    asks_for_labels: bool,
) -> Bool[Tensor, "b n"] | None:
    """The tokens that each row's router reads; None: all.

    Args:
        adapters: those of `rows.names`.
        rows: which adapter each row follows.
        attended: the tokens that are no padding; None: all.
        labels: of the pass; None: it has none.
        like: the rows' embeddings.
        asks_for_labels: whether answers stand in the input of this kind of pass, so that a router
            in training must know where they begin.

    Raises:
        ConfigError: a router could see an answer.
    """
    scopes = [adapter.scope if adapter.reads else "input" for adapter in adapters]
    for scope, adapter in zip(scopes, adapters, strict=True):
        if not asks_for_labels or not adapter.reads:
            continue
        if scope == "input" and labels is not None:
            raise ConfigError(
                "router_scope='input' lets the router read the answer, which is part of a causal"
                " LM's input; leave router_scope out"
            )
        if scope == "context" and labels is None and adapter.training:
            raise ConfigError(
                "no labels reached the model, so the router cannot tell the text from the answer"
                " (label smoothing and losses computed outside take them away); pass labels, or say"
                " how many first tokens the router reads: SMoPConfig(router_scope=16)"
            )
    if set(scopes) <= {"input"} or (labels is None and set(scopes) <= {"input", "context"}):
        return attended
    if attended is None:
        attended = torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    masks = {scope: _read(scope, attended, labels) for scope in scopes}
    if rows.of_row is None or len(masks) == 1:
        return masks[scopes[0]]
    read = attended
    for scope, mask in masks.items():
        own = on_device([a >= 0 and scopes[a] == scope for a in rows.of_row], like.device)
        read = torch.where(own[:, None], mask, read)
    return read


def _read(
    scope: Scope, attended: Bool[Tensor, "b n"], labels: Int[Tensor, "b n"] | None
) -> Bool[Tensor, "b n"]:
    if isinstance(scope, int):
        return first_tokens(attended, scope)
    return context_mask(labels, attended) if scope == "context" and labels is not None else attended


def row_state(
    adapters: Sequence[Adapter],
    rows: RowAdapters,
    content_of_rows: Callable[[], Int[Tensor, "b"]],
    *,
    training: bool,
    draw: int = 0,
) -> RowState:
    """What strategies may use of the rows of a pass that stands for itself.

    Args:
        adapters: those of `rows.names`.
        rows: which adapter each row follows.
        content_of_rows: hashes what is read of each row, where a strategy draws by it or reads it.
        training: whether there is noise.
        draw: which of several draws of randomness for the same rows.
    """
    strategies = [adapter.strategy for adapter in adapters]
    draws = training and any(strategy.is_random for strategy in strategies)
    keys = steps = content = None
    if draws or any(strategy.reads_content for strategy in strategies):
        content = content_of_rows()
    if draws or any(strategy.is_annealed for strategy in strategies):
        steps = torch.stack([adapter.steps for adapter in adapters])
        seeds = torch.stack([adapter.seed for adapter in adapters])
        if rows.of_row is not None:
            whose = on_device(rows.of_row, steps.device)
            seeds, steps = seeds[whose], steps[whose]
        if draws and content is not None:
            keys = row_keys(seeds, steps, content, draw)
    return RowState(keys, steps, content)
