"""What a backbone is given in place of its input: with the prompt, or behind a cache that holds it.

Embeddings, attention mask, positions and token types all follow one `Layout`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from peft_smop.errors import ConfigError, PromptIgnoredError
from peft_smop.rows import RowAdapters, current
from peft_smop.tuner.backbone import Backbone
from peft_smop.tuner.call import PromptCall, Routed
from peft_smop.tuner.layer import SMoPLayer
from peft_smop.tuner.mixture import Asked, soft_prompts
from peft_smop.tuner.reading import content_of, readable
from peft_smop.tuner.splice import Layout, left_padding, mean_embedding


def layout_of(
    layer: SMoPLayer,
    backbone: Backbone,
    rows: RowAdapters,
    mask: Tensor | None,
    like: Tensor,
    tokens: int,
) -> Layout:
    """Where prompts and tokens of a pass stand."""
    lengths = layer.lengths(rows, like.device)
    padding = torch.zeros_like(lengths) if mask is None else left_padding(mask)
    return Layout.of(
        padding=padding,
        lengths=lengths,
        tokens=tokens,
        width=layer.width(rows),
        slack=backbone.slack,
    )


def spliced(
    layer: SMoPLayer,
    backbone: Backbone,
    call: PromptCall,
    given: dict[str, Any],
    rows: RowAdapters,
    x: Float[Tensor, "b n e"],
    labels: Tensor | None,
) -> dict[str, Any]:
    """The arguments of a pass over texts, with every row's prompt before its text.

    Args:
        layer: the adapters.
        backbone: which is about to be called.
        call: takes up what is decided.
        given: the backbone's arguments by name; changed in place.
        rows: which adapter each row follows.
        x: the tokens' embeddings.
        labels: of the pass; None: it has none.
    """
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    if given.get("inputs_embeds") is not None and mask is not None:
        # what stands under padding may be anything; a product by 0 would keep it
        x = x.masked_fill((mask == 0)[:, :, None] & ~x.isfinite(), 0)
    layout, call.rows = layout_of(layer, backbone, rows, mask, x, x.shape[1]), rows
    if call.prompts is None:
        prompts = _decided(layer, backbone, call, given.get("input_ids"), rows, x, mask, labels)
    else:
        prompts = call.prompts.repeat_interleave(len(x) // len(call.prompts), dim=0)
    given["input_ids"] = None
    given["inputs_embeds"] = layout.embeddings(prompts.to(x.dtype), x)
    if mask is not None or layer.is_uneven(rows):
        given["attention_mask"] = mask = layout.mask(mask)
    if backbone.takes_positions and (positions is not None or mask is not None):
        # a caller's positions are kept; without any, counting from the prompt makes left padding
        # harmless
        given["position_ids"] = layout.positions(positions, first=backbone.first_position)
    for name in ("token_type_ids", "global_attention_mask"):
        if given.get(name) is not None:
            given[name] = layout.with_zeros(given[name])
    call.layout = layout
    return given


def continued(
    layer: SMoPLayer,
    backbone: Backbone,
    given: dict[str, Any],
    rows: RowAdapters,
    tokens: Tensor,
    past: int,
) -> dict[str, Any]:
    """The arguments of a pass that goes on from a cache which begins with the prompt.

    Raises:
        ConfigError: the backbone cannot tell where the rows of its cache begin.
    """
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    uneven = layer.is_uneven(rows)
    if mask is None and not uneven and positions is None:
        return given  # the cache is longer by the prompt, and positions follow its length
    if backbone.slack == "right" and uneven:
        raise ConfigError(
            "this model counts positions by slots, so prompts of different lengths (or __base__)"
            " cannot go on from one cache; generate for each adapter by itself"
        )
    width = layer.width(rows)
    total = mask.shape[1] if mask is not None else past - width + tokens.shape[1]
    layout = layout_of(layer, backbone, rows, mask, tokens, total)
    if mask is not None or uneven:
        given["attention_mask"] = layout.mask(mask)
    if backbone.takes_positions and positions is not None:
        given["position_ids"] = positions + layout.lengths[:, None]
    elif backbone.takes_positions:
        every = layout.positions(None, first=backbone.first_position)
        given["position_ids"] = every[:, past:]
    return given


def encoder_mask(
    layer: SMoPLayer,
    backbone: Backbone,
    rows: RowAdapters,
    states: Float[Tensor, "b s e"],
    mask: Tensor | None,
    *,
    is_fresh: bool,
) -> Tensor | None:
    """The mask (b, s) of an encoder's states that begin with prompts; None: none is needed.

    Args:
        layer: the adapters.
        backbone: the encoder.
        rows: which adapter each row follows.
        states: what the encoder gave, or a caller.
        mask: of the tokens alone, (b, n).
        is_fresh: whether the states are older than this call.

    Raises:
        PromptIgnoredError: the states were computed without the prompt and have no room for it.
    """
    width = layer.width(rows)
    if mask is None:
        if is_fresh:
            raise PromptIgnoredError(
                "encoder_outputs without an attention_mask do not show whether they hold the"
                " soft prompt; pass the attention_mask of the tokens"
            )
        if not layer.is_uneven(rows):
            return None
    elif mask.shape[1] + width != states.shape[1]:
        raise PromptIgnoredError(
            f"encoder_outputs have {states.shape[1]} positions for {mask.shape[1]} tokens and a"
            f" prompt of {width}: they were computed without this adapter's soft prompt; compute"
            " them through the model"
        )
    return layout_of(layer, backbone, rows, mask, states, states.shape[1] - width).mask(mask)


def _decided(
    layer: SMoPLayer,
    backbone: Backbone,
    call: PromptCall,
    ids: Tensor | None,
    rows: RowAdapters,
    x: Tensor,
    mask: Tensor | None,
    labels: Tensor | None,
) -> Float[Tensor, "b l e"]:
    """Every row's scaled prompt; a generation's is decided once."""
    adapters, training = layer.adapters(), layer.training
    routes = call.routes
    asked = current(layer, Routed)
    if routes is None and asked is not None:
        counts = {name: adapter.prompts.shape[0] for name, adapter in adapters.items()}
        routes = asked.routes(rows, counts, x.device, repeated=call.decides_once)
    with torch.autocast(x.device.type, enabled=False):
        read = readable(
            [adapters[name] for name in rows.names],
            rows,
            None if mask is None else mask != 0,
            labels if backbone.predicts_next else None,
            like=x,
            asks_for_labels=backbone.predicts_next and not call.decides_once,
        )
        prompts, call.decisions = soft_prompts(
            adapters,
            rows,
            mean_embedding(x, read),
            content_of(adapters, rows, x, ids, read, training=training),
            asked=Asked(routes, call.draw, call.posterior),
            training=training,
        )
    layer.last = (rows, tuple(decision.detached() for decision in call.decisions))
    if call.decides_once:
        call.prompts = prompts
    return prompts
