"""What a backbone is given in place of its input: with the prompt, or behind a cache that holds it.

Embeddings, attention mask, positions and token types all follow one `Layout`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError, PromptIgnoredError
from peft_smop.rows import RowAdapters
from peft_smop.tuner.backbone import Backbone
from peft_smop.tuner.call import PromptCall
from peft_smop.tuner.deciding import decided, finite
from peft_smop.tuner.layer import Places, SMoPLayer
from peft_smop.tuner.reading import behind_kept, in_halves
from peft_smop.tuner.scope import left_padding, text_ends
from peft_smop.tuner.splice import Layout


def layout_of(
    places: Places,
    backbone: Backbone,
    mask: Tensor | None,
    tokens: int,
    edges: Int[Tensor, "b"] | None = None,
) -> Layout:
    """Where prompts and tokens of a pass stand.

    Args:
        places: of the rows' prompts.
        backbone: the backbone.
        mask: of the tokens; None: all are attended.
        tokens: of a row.
        edges: where the text ends that a row's prompt may stand behind, as `text_ends` counts;
            None: no prompt stands there.
    """
    padding = torch.zeros_like(places.lengths) if mask is None else left_padding(mask)
    if edges is not None and places.is_behind is not None:
        edges = torch.where(places.is_behind, torch.maximum(edges, padding), padding)
    return Layout.of(
        padding=padding,
        lengths=places.lengths,
        tokens=tokens,
        width=places.width,
        slack=backbone.slack,
        edges=edges,
    )


def _edges(
    places: Places,
    call: PromptCall,
    x: Float[Tensor, "b n e"],
    mask: Tensor | None,
    labels: Tensor | None,
    *,
    in_training: bool,
) -> Int[Tensor, "b"] | None:
    """Where the texts of a pass end; None: no prompt stands behind one.

    Of a generation's passes, where those of the first did.

    Raises:
        ConfigError: nothing says where an answer begins.
    """
    if not places.behind:
        return None
    if call.edges is not None:
        return call.edges.repeat_interleave(len(x) // len(call.edges))
    if labels is None and in_training and not call.decides_once:
        raise ConfigError(
            f"adapter {places.behind[0]!r} puts its prompt between text and answer, and no labels"
            " say where the answer begins (label smoothing and losses computed outside take them"
            " away); pass labels to the model"
        )
    attended = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask != 0
    edges = text_ends(attended, labels)
    if call.decides_once:
        call.edges = edges
    return edges


def spliced(
    layer: SMoPLayer,
    backbone: Backbone,
    call: PromptCall,
    given: dict[str, Any],
    rows: RowAdapters,
    x: Float[Tensor, "b n e"],
    labels: Tensor | None,
) -> dict[str, Any]:
    """The arguments of a pass over texts, with every row's prompt before its text or behind it.

    Args:
        layer: the adapters.
        backbone: which is about to be called.
        call: takes up what is decided.
        given: the backbone's arguments by name; changed in place.
        rows: which adapter each row follows.
        x: the tokens' embeddings.
        labels: of the pass; None: it has none.
    """
    ids, mask, positions = (given.get(k) for k in ("input_ids", "attention_mask", "position_ids"))
    if given.get("inputs_embeds") is not None:
        x = finite(x, mask)
    prompts = decided(
        layer,
        call,
        rows,
        x,
        ids=ids,
        mask=mask,
        labels=labels,
        answers_within=backbone.predicts_next,
    )
    places = layer.places(rows, x.device)
    halves = in_halves(layer, backbone, call, given, places, prompts, x, labels)
    if halves is not None:
        own, call.layout = halves
        return {**given, **own}
    edges = _edges(places, call, x, mask, labels, in_training=layer.training)
    layout = call.layout = layout_of(places, backbone, mask, x.shape[1], edges)
    if labels is None and not call.decides_once:
        halves = behind_kept(layer, backbone, given, places, prompts, x, layout)
        if halves is not None:
            own, call.layout = halves
            return {**given, **own}
    needs_mask = mask is not None or places.is_uneven
    given["input_ids"], given["inputs_embeds"] = None, layout.embeddings(prompts.to(x.dtype), x)
    if needs_mask:
        given["attention_mask"] = mask = layout.mask(mask)
    if backbone.takes_positions and (positions is not None or mask is not None):
        # a caller's positions are kept; without any, counting from the prompt makes left padding
        # harmless
        given["position_ids"] = layout.positions(positions, first=backbone.first_position)
    for name in ("token_type_ids", "global_attention_mask"):
        if given.get(name) is not None:
            given[name] = layout.with_zeros(given[name])
    return given


def continued(
    layer: SMoPLayer,
    backbone: Backbone,
    given: dict[str, Any],
    rows: RowAdapters,
    tokens: Tensor,
    past: int,
    edges: Int[Tensor, "r"] | None,
) -> dict[str, Any]:
    """The arguments of a pass that goes on from a cache which holds the prompt.

    Args:
        layer: the adapters.
        backbone: which is about to be called.
        given: its arguments by name; changed in place.
        rows: which adapter each row follows.
        tokens: that it is given.
        past: positions that the cache holds.
        edges: where the texts of the rows ended with which it was filled.

    Raises:
        ConfigError: the backbone cannot tell where the rows of its cache begin.
    """
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    places = layer.places(rows, tokens.device)
    if mask is None and not places.is_uneven and positions is None:
        return given  # the cache is longer by the prompt, and positions follow its length
    if backbone.slack == "right" and places.is_uneven:
        raise ConfigError(
            "this model counts positions by slots, so prompts of different lengths (or __base__)"
            " cannot go on from one cache; generate for each adapter by itself"
        )
    total = mask.shape[1] if mask is not None else past - places.width + tokens.shape[1]
    if edges is not None:
        edges = edges.repeat_interleave(rows.count // len(edges))
    layout = layout_of(places, backbone, mask, total, edges)
    if mask is not None or places.is_uneven:
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
    places = layer.places(rows, states.device)
    if mask is None:
        if is_fresh:
            raise PromptIgnoredError(
                "encoder_outputs without an attention_mask do not show whether they hold the"
                " soft prompt; pass the attention_mask of the tokens"
            )
        if not places.is_uneven:
            return None
    elif mask.shape[1] + places.width != states.shape[1]:
        raise PromptIgnoredError(
            f"encoder_outputs have {states.shape[1]} positions for {mask.shape[1]} tokens and a"
            f" prompt of {places.width}: they were computed without this adapter's soft prompt;"
            " compute them through the model"
        )
    return layout_of(places, backbone, mask, states.shape[1] - places.width).mask(mask)
