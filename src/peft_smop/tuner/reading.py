"""Texts that are read once, for all prompts behind them.

    one pass          [pad  t0  t1  P0  P1  a0  a1 ]   through which gradients run
    read once         [pad  t0  t1 ]                   without gradient: no prompt changes it
    continued                      [P0  P1  a0  a1 ]   its keys and values, with gradients

What a text gives depends on no prompt that stands behind it. So it is read without gradient and
without dropout, once for every prompt that its row is put under, and what is trained through are
the positions of prompt and answer alone. Texts of similar length are read together; what continues
them is as long for a short text as for a long one, and shares a pass. Where texts are kept, a pass
that asks what follows them computes its prompts alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import DynamicCache

from peft_smop.rows import calling, cut
from peft_smop.tuner.backbone import Backbone, cache_of, parameter_names
from peft_smop.tuner.call import PromptCall
from peft_smop.tuner.layer import Places, SMoPLayer
from peft_smop.tuner.scope import left_padding, text_ends
from peft_smop.tuner.splice import Layout
from peft_smop.tuner.texts import Halves, KeptTexts, Texts, joined, may_be_continued

_LOOKED_INTO = ("output_hidden_states", "output_attentions", "output_router_logits", "use_cache")
"""What a caller may ask of a pass that the two halves of one do not give."""

_UNDERSTOOD = frozenset(
    {
        "input_ids",
        "inputs_embeds",
        "attention_mask",
        "position_ids",
        "cache_position",
        "labels",
        "num_items_in_batch",
        "logits_to_keep",
    }
)
"""Tensors of a pass that its halves know what to do with."""

_MAX_PADDING = 1.1
"""Most tokens that are read over tokens of text."""

_RECOMPUTES = "gradient_checkpointing"
"""The mark of a module that computes its layers again on the way back; a cache would grow twice."""


def texts_of(
    layer: SMoPLayer,
    backbone: Backbone,
    given: Mapping[str, Any],
    labels: Tensor | None,
    *,
    all_behind: bool,
) -> Texts | None:
    """Read the texts of a labelled pass, where all its prompts stand behind them.

    Args:
        layer: the adapters.
        backbone: which reads.
        given: the arguments of the model or the backbone, by name.
        labels: of the pass, which show where texts end.
        all_behind: whether no prompt of the pass stands before its text.

    Returns:
        None where one pass has to do all: a prompt stands before its text, the backbone takes no
        positions or recomputes its layers, or something is asked of the pass that only one gives.
    """
    if labels is None or not all_behind or not _may_be_halved(layer, backbone, given):
        return None
    x, mask = given.get("inputs_embeds"), given.get("attention_mask")
    with torch.no_grad():
        x = backbone.embedding(given["input_ids"]) if x is None else x
        whole = x.new_ones(x.shape[:2], dtype=torch.long) if mask is None else mask
        ends = text_ends(whole != 0, labels)
        padding = left_padding(whole)
        edges = torch.maximum(ends, padding)
        length = int((edges - padding).amax())
        if length == 0:
            return None
        columns = edges[:, None] - length + torch.arange(length, device=x.device)
        is_text = columns >= padding[:, None]
        columns = columns.clamp(min=0)
        text = x.gather(1, columns[:, :, None].expand(-1, -1, x.shape[-1]))
        seen = whole.gather(1, columns) * is_text
        places = (columns - padding[:, None]).clamp(min=0) + backbone.first_position
        with calling(PromptCall(layer, reads=True)), evaluating(backbone.module):
            ids = given.get("input_ids")
            # a text with holes, or of nothing but padding, is no list of tokens
            is_plain = (seen != 0).eq(is_text).all() & is_text.any(dim=1).all()
            if layer.kept is not None and ids is not None and bool(is_plain):
                said = [
                    own[real].tolist()
                    for own, real in zip(ids.gather(1, columns), is_text, strict=True)
                ]
                _follow(layer.kept, backbone)
                cache, states = _kept(layer.kept, backbone, said, text)
            else:
                read = [
                    (rows, *_read(backbone, text[rows, -n:], seen[rows, -n:], places[rows, -n:]))
                    for rows, n in _of_similar_length((edges - padding).tolist())
                ]
                if not all(may_be_continued(cache) for _, cache, _ in read):
                    layer.reads_first = False
                    return None
                cache, states = joined(read, length)
    return Texts(cache, states, seen, edges - padding, edges)


def reads_apart(layer: SMoPLayer, backbone: Backbone, names: Iterable[str]) -> bool:
    """Whether a labelled training pass reads its texts before it.

    Then what is computed of a row is as long whatever its text is, as far as is known.

    Args:
        layer: the adapters.
        backbone: which reads.
        names: of the adapters whose rows share the pass.
    """
    return layer.training and layer.all_behind(names) and _may_be_halved(layer, backbone, {})


def _of_similar_length(lengths: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Rows that are read together, and how long the longest of them is; nothing is not read."""
    for rows in cut(lengths, _MAX_PADDING):
        yield rows, max(1, *(lengths[row] for row in rows))


def _read(
    backbone: Backbone,
    text: Float[Tensor, "b t e"],
    mask: Int[Tensor, "b t"],
    positions: Int[Tensor, "b t"],
) -> tuple[Any, Float[Tensor, "b t e"]]:
    """A backbone's cache of some texts, and its last states."""
    output = backbone.module(
        inputs_embeds=text,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        return_dict=True,
    )
    return cache_of(output), output["last_hidden_state"]


def _kept(
    kept: KeptTexts,
    backbone: Backbone,
    said: Sequence[Sequence[int]],
    text: Float[Tensor, "b t e"],
) -> tuple[Any, Float[Tensor, "b t e"]]:
    """The same of texts of which some may be known."""
    found = []
    for ids, x in zip(said, text, strict=True):
        own = x[None, len(x) - len(ids) :]
        places = torch.arange(len(ids), device=x.device)[None] + backbone.first_position

        def read(own: Tensor = own, places: Tensor = places) -> tuple[Any, Tensor]:
            cache, states = _read(backbone, own, torch.ones_like(places), places)
            return cache, states[0]

        found.append(kept.text(_key(backbone, x, ids), read))
    length = text.shape[1]
    states = text.new_zeros(len(found), length, found[0].states.shape[1])
    for row, one in enumerate(found):
        states[row, length - len(one.states) :] = one.states
    return kept.cache_of(found, length), states


def _follow(kept: KeptTexts, backbone: Backbone) -> None:
    """Forget what was read with other weights, or with other adapters beside them."""
    module = backbone.module
    # PyTorch counts the changes of every tensor
    weights = tuple((p.data_ptr(), p._version) for p in module.parameters())
    beside = tuple(
        (id(part), part.disable_adapters, tuple(part.active_adapters))
        for part in module.modules()
        if isinstance(part, BaseTunerLayer) and not isinstance(part, SMoPLayer)
    )
    kept.follow((weights, beside))


def _key(backbone: Backbone, x: Tensor, ids: Sequence[int]) -> Hashable:
    """What a text says, and to whom: the last digits differ by device, precision and attention."""
    kind = x.device.type
    cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    attention = backbone.module.config._attn_implementation
    return (x.device, x.dtype, cast, attention, *ids)


def _may_be_halved(layer: SMoPLayer, backbone: Backbone, given: Mapping[str, Any]) -> bool:
    """Whether a pass whose prompts all stand behind may be its text and what continues it."""
    module: Any = backbone.module
    config, x = module.config, given.get("inputs_embeds")
    return not (
        torch.compiler.is_compiling()
        or not layer.reads_first
        # what is trained, or looked at, in the text has a gradient of its own
        or (x is not None and x.requires_grad)
        or layer.is_trained_beside(module)
        or not (backbone.takes_positions and backbone.predicts_next)
        or given.get("position_ids") is not None
        or cache_of(given) is not None
        or any(given.get(name) for name in _LOOKED_INTO)
        or any(isinstance(v, Tensor) and name not in _UNDERSTOOD for name, v in given.items())
        or any(getattr(config, name, False) for name in _LOOKED_INTO[:-1])
        or any(part.training and getattr(part, _RECOMPUTES, False) for part in module.modules())
    )


def in_halves(
    layer: SMoPLayer,
    backbone: Backbone,
    call: PromptCall,
    given: Mapping[str, Any],
    places: Places,
    prompts: Float[Tensor, "b l e"],
    x: Float[Tensor, "b n e"],
    labels: Tensor | None,
) -> tuple[dict[str, Any], Halves] | None:
    """A pass as what continues its texts, where they were read before it or, in training, may be.

    Args:
        layer: the adapters.
        backbone: which is about to be called.
        call: hands over what was read.
        given: the backbone's arguments by name.
        places: of the rows' prompts.
        prompts: every row's.
        x: the tokens' embeddings.
        labels: of the pass; None: it has none.

    Returns:
        The backbone's arguments, and how the tokens' states are put together; None where one pass
        does all.
    """
    texts, call.texts = call.texts, None
    if texts is None and layer.training and torch.is_grad_enabled():
        texts = texts_of(layer, backbone, given, labels, all_behind=places.all_behind)
    if texts is None:
        return None
    mask = given.get("attention_mask")
    return _continuing(backbone, places, texts.rows(None), prompts, x, mask)


def behind_kept(
    layer: SMoPLayer,
    backbone: Backbone,
    given: Mapping[str, Any],
    places: Places,
    prompts: Float[Tensor, "b l e"],
    x: Float[Tensor, "b n e"],
    layout: Layout,
) -> tuple[dict[str, Any], Halves] | None:
    """A pass over texts alone as its prompts behind them, where texts are kept.

    Its cache holds what that of one pass does, so that answers may follow.

    Args:
        layer: the adapters.
        backbone: which is about to be called.
        given: its arguments by name.
        places: of the rows' prompts.
        prompts: every row's.
        x: the tokens' embeddings.
        layout: of the one pass.

    Returns:
        As of `in_halves`; None where one pass does all.
    """
    ids, mask, positions = (given.get(k) for k in ("input_ids", "attention_mask", "position_ids"))
    rest = {k: v for k, v in given.items() if k not in ("position_ids", "use_cache")}
    if (
        layer.kept is None
        or torch.is_grad_enabled()
        or ids is None
        or not places.all_behind
        or places.is_uneven
        or not _may_be_halved(layer, backbone, rest)
        # a window counts slots, padding included
        or any(
            getattr(slot, "is_sliding", False)
            for slot in DynamicCache(config=backbone.module.config).layers
        )
    ):
        return None
    b, n = ids.shape
    mask = ids.new_ones(b, n) if mask is None else mask
    padding = left_padding(mask)
    columns = torch.arange(n, device=ids.device)[None, :]
    own = (columns - padding[:, None]).clamp(min=0) + backbone.first_position
    is_plain = ((mask != 0) == (columns >= padding[:, None])).all() & (padding < n).all()
    if positions is not None:
        is_plain = is_plain & ((positions == own) | (mask == 0)).all()
    if not bool(is_plain):
        return None
    said = [row[begin:].tolist() for row, begin in zip(ids, padding.tolist(), strict=True)]
    _follow(layer.kept, backbone)
    if layer.kept.is_full and not all(_key(backbone, x, text) in layer.kept for text in said):
        return None  # what cannot be kept is read fastest together
    with calling(PromptCall(layer, reads=True)), evaluating(backbone.module):
        cache, states = _kept(layer.kept, backbone, said, x)
    width = places.width
    continued = {
        "input_ids": None,
        "inputs_embeds": prompts.to(x.dtype),
        "attention_mask": torch.cat([mask, mask.new_ones(b, width)], dim=1),
        "position_ids": own[:, -1:] + torch.arange(1, width + 1, device=ids.device),
        "use_cache": True,
        _cache_name(backbone): cache,
    }
    read = columns.expand(b, -1).clone()
    read[:, -1] += width
    asked_for = given.get("use_cache")
    if asked_for is None:
        asked_for = getattr(backbone.module.config, "use_cache", True)
    return continued, Halves(states, read, whole=layout if asked_for else None)


def _cache_name(backbone: Backbone) -> str:
    return "cache" if "cache" in parameter_names(backbone.module) else "past_key_values"


def _continuing(
    backbone: Backbone,
    places: Places,
    texts: Texts,
    prompts: Float[Tensor, "b l e"],
    x: Float[Tensor, "b n e"],
    mask: Tensor | None,
) -> tuple[dict[str, Any], Halves]:
    """The backbone's arguments for prompts and answers behind texts that were read.

    Args:
        backbone: which is about to be called.
        places: of the rows' prompts.
        texts: what was read of these rows.
        prompts: every row's.
        x: the tokens' embeddings.
        mask: of the tokens; None: all are attended.

    Returns:
        With how the tokens' states are put together.
    """
    n, width, t = x.shape[1], prompts.shape[1], texts.states.shape[1]
    lengths, edges = places.lengths[:, None], texts.edges[:, None]
    whole = x.new_ones(x.shape[:2], dtype=texts.mask.dtype) if mask is None else mask
    ends = (whole != 0).long() * torch.arange(1, n + 1, device=x.device)
    answer = int((ends.amax(dim=1, keepdim=True) - edges).amax().clamp(min=0))
    slots = torch.arange(width + answer, device=x.device)[None, :]
    is_prompt = slots < lengths
    columns = edges + slots - lengths
    is_token = ~is_prompt & (columns < n)
    columns = columns.clamp(min=0, max=n - 1)
    source = torch.where(is_prompt, slots, columns + width)
    joined = torch.cat([prompts.to(x.dtype), x], dim=1)
    own = torch.where(is_prompt, 1, whole.gather(1, columns) * is_token)
    tokens = torch.arange(n, device=x.device)[None, :]
    behind = tokens >= edges - 1
    read = torch.where(behind, tokens - edges + t + lengths, tokens - edges + t)
    given = {
        "input_ids": None,
        "inputs_embeds": joined.gather(1, source[:, :, None].expand(-1, -1, x.shape[-1])),
        "attention_mask": torch.cat([texts.mask, own.to(texts.mask.dtype)], dim=1),
        "position_ids": texts.lengths[:, None] + slots + backbone.first_position,
        "use_cache": True,
        _cache_name(backbone): texts.cache,
    }
    last = t + slots.shape[1] - 1
    return given, Halves(texts.states, read.clamp(min=0, max=last))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every module is put back as it was."""
    modes: Sequence[tuple[nn.Module, bool]] = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
