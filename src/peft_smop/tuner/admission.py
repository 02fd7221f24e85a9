"""What a backbone with a prompt can be given, and what is refused at its door."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from peft_smop.errors import ConfigError, PromptIgnoredError
from peft_smop.rows import RowAdapters
from peft_smop.tuner.backbone import Backbone, cache_of
from peft_smop.tuner.scope import SEVERAL_SEQUENCES, check_one_sequence, require
from peft_smop.tuner.splice import Layout

_FILLED = "smop_filled"
"""The attribute by which a KV cache says whose soft prompts it begins with."""
_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx", "cu_seqlens")
"""Arguments by which rows of several sequences are told apart."""


def check_no_replica(module: nn.Module) -> None:
    """Refuse a copy of the model that `nn.DataParallel` makes for another device.

    Raises:
        ConfigError: its calls would be those of the model that it was copied from.
    """
    if getattr(module, "_is_replica", False):
        raise ConfigError(
            "nn.DataParallel runs copies of the model that share its soft prompts' calls; start a"
            " process for each device (torchrun, accelerate launch), or show one device alone"
            " (CUDA_VISIBLE_DEVICES=0)"
        )


def check_unfilled(holder: Any) -> None:
    """Refuse a cache, or encoder's states, that rows without an adapter cannot go on from.

    Raises:
        PromptIgnoredError: it begins with soft prompts.
    """
    filled = getattr(holder, _FILLED, None)
    if filled is not None:
        raise PromptIgnoredError(
            f"what is gone on from was computed with soft prompts ({', '.join(filled.rows.names)}),"
            " and these rows have none; start anew"
        )


def check_states(states: Any, rows_of: Callable[[int], RowAdapters | None]) -> None:
    """Refuse an encoder's output that other adapters' prompts are in.

    Args:
        states: as a caller gives them to the model.
        rows_of: which adapter each of so many rows follows.

    Raises:
        PromptIgnoredError: with whose they are.
        ConfigError: it is a bare tensor, of which backbones would take the first row for all of it.
    """
    if isinstance(states, Tensor):
        raise ConfigError(
            f"encoder_outputs is a tensor of shape {tuple(states.shape)}; give it as an encoder"
            " does: BaseModelOutput(last_hidden_state=...)"
        )
    rows = rows_of(states[0].shape[0])
    if rows is None or not rows.names:
        check_unfilled(states)
        return
    filled = getattr(states, _FILLED, None)
    if filled is not None and not rows.continues(filled.rows):
        raise PromptIgnoredError(
            f"encoder_outputs were computed for rows of {', '.join(filled.rows.names)}, and these"
            f" rows follow {', '.join(rows.names)}, or others of them; compute them anew"
        )


class Filled(NamedTuple):
    """With which rows' prompts a cache was filled."""

    rows: RowAdapters
    width: int
    edges: Tensor
    """How many tokens of each row stand before its prompt."""


def fill(cache: Any, rows: RowAdapters, layout: Layout) -> None:
    """Mark a cache that has just been filled."""
    setattr(cache, _FILLED, Filled(rows, layout.width, layout.edges))


def tokens_of(given: Mapping[str, Any]) -> Tensor | None:
    """What a pass is given of its tokens: ids (b, n), or embeddings (b, n, e); None: neither.

    Raises:
        ConfigError: it is given both, or something of another shape, or nothing in them.
    """
    ids, x = given.get("input_ids"), given.get("inputs_embeds")
    if ids is not None and x is not None:
        raise ConfigError("input_ids and inputs_embeds say the same twice; give one of them")
    tokens, shape = (ids, "(rows, tokens)") if x is None else (x, "(rows, tokens, width)")
    if tokens is None:
        return None
    if tokens.dim() != shape.count(",") + 1:
        name = "input_ids have" if x is None else "inputs_embeds have"
        raise ConfigError(f"{name} the shape {tuple(tokens.shape)}; give {shape}")
    check_some(tokens.shape[0])
    if tokens.shape[1] == 0:
        raise ConfigError("the rows have no tokens, so there is nothing to route by; give some")
    return cast("Tensor", tokens)


def check_some(rows: int) -> None:
    """Refuse a batch without rows.

    Raises:
        ConfigError: with what to do instead.
    """
    if rows == 0:
        raise ConfigError("the batch has no rows, so there is nothing to route; give at least one")


def check_input(
    given: Mapping[str, Any], backbone: Backbone, *, past: int, rows: int, tokens: int, width: int
) -> None:
    """Refuse inputs that have no one place for a prompt.

    Args:
        given: the backbone's arguments by name.
        backbone: the backbone.
        past: positions that its cache holds.
        rows: how many there are.
        tokens: that are given now, of each row.
        width: the longest prompt.

    Raises:
        ConfigError: with what to do instead.
    """
    mask, cache = given.get("attention_mask"), cache_of(given)
    x = given.get("inputs_embeds")
    if x is not None and x.dtype == torch.float64 != backbone.module.dtype:
        raise ConfigError(
            f"inputs_embeds are torch.float64, the model is {backbone.module.dtype}; give them as"
            " that"
        )
    widest = getattr(backbone.embedding, "embedding_dim", None)
    if x is not None and widest is not None and x.shape[2] != widest:
        raise ConfigError(
            f"inputs_embeds are {x.shape[2]} wide, the model's embeddings {widest}; give those"
        )
    if getattr(cache, "is_compileable", False):
        raise ConfigError(
            "static caches have no room for the soft prompt; use the default dynamic cache"
        )
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise ConfigError(
            "soft prompts need the two-dimensional attention mask (rows, tokens): a ready-made mask"
            " has no room for the prompt"
        )
    # behind a cache the mask also counts what the cache holds
    if mask is not None and mask.shape != (rows, mask.shape[1] if past else tokens):
        raise ConfigError(
            f"attention_mask has the shape {tuple(mask.shape)} for {rows} rows of {tokens} tokens;"
            " give one number for each token"
        )
    if any(given.get(name) is not None for name in _PACKED):
        raise ConfigError(SEVERAL_SEQUENCES)
    positions = given.get("position_ids")
    taken = past + tokens + (0 if past else width)
    if backbone.num_positions is not None and taken > backbone.num_positions:
        raise ConfigError(
            f"a text of {taken - width} tokens and a prompt of {width} virtual tokens exceed the"
            f" model's {backbone.num_positions} positions; shorten the text, or lower"
            " num_virtual_tokens"
        )
    if past:
        return
    if positions is not None and positions.dim() == 2:
        check_one_sequence(positions, None if mask is None else mask != 0)
    ids, padding = given.get("input_ids"), backbone.padding_id
    if mask is None and ids is not None and padding is not None:
        require(
            ((ids[:, 0] != padding) & (ids[:, -1] != padding)).all(),
            f"input_ids begin or end in padding (token {padding}), but no attention_mask says so;"
            " pass the tokenizer's attention_mask",
        )


def check_cache(
    cache: Any, rows: RowAdapters, given: Mapping[str, Any], total: int, width: int, *, fresh: bool
) -> Filled:
    """Refuse a cache whose content does not go with this batch's prompts.

    Args:
        cache: a KV cache that is not empty.
        rows: which adapter each row follows.
        given: the backbone's arguments by name.
        total: positions of the cache and the new tokens.
        width: the longest prompt of the batch.
        fresh: whether the cache is older than this call.

    Returns:
        With what it was filled.

    Raises:
        PromptIgnoredError: it was filled without a prompt, or with another adapter's.
        ConfigError: the new tokens do not continue it.
    """
    filled = getattr(cache, _FILLED, None)
    if filled is None or filled.width != width:
        said = f"with a soft prompt of {filled.width}" if filled else "without the soft prompt"
        raise PromptIgnoredError(
            f"past_key_values was filled {said}, but this adapter's has {width} virtual tokens;"
            " start from an empty cache"
        )
    if not rows.continues(filled.rows):
        raise PromptIgnoredError(
            f"past_key_values was filled for rows of {', '.join(filled.rows.names)}, and these rows"
            f" follow {', '.join(rows.names)}, or others of them; start from an empty cache"
        )
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    tokens = total - width
    if mask is not None:
        tokens = mask.shape[1]
    elif positions is not None and fresh:
        # only the positions tell what an older cache should hold
        tokens = int(positions[0, -1]) + 1
    if tokens + width != total:
        raise ConfigError(
            f"the cache and the new tokens have {total} positions, the text and its prompt"
            f" {tokens + width}; generate cannot go on from a cache that holds a soft prompt:"
            " leave past_key_values out"
        )
    return filled


def check_generation(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse kinds of generation that have no room for a prompt.

    Raises:
        ConfigError: with the option and why.
    """
    if kwargs.get("assistant_model") is not None:
        raise ConfigError(
            "assisted generation crops its cache by token count and would cut into the soft prompt;"
            " generate without assistant_model"
        )
    for processor in kwargs.get("logits_processor") or ():
        if "ClassifierFreeGuidance" in type(processor).__name__:
            raise ConfigError(
                f"{type(processor).__name__} computes a second text within one generation, which"
                " would be given the first one's prompt; leave it out"
            )
    configs = [arg for arg in args if hasattr(arg, "max_new_tokens")]
    configs += [kwargs.get("generation_config"), getattr(model, "generation_config", None)]
    settings = (kwargs, *configs)
    splits = "splits the input, but the soft prompt belongs before all of it"
    for key, reason in {
        "prompt_lookup_num_tokens": splits,
        "prefill_chunk_size": splits,
        "assistant_early_exit": splits,
        "guidance_scale": "computes a second text within one generation, which would be given the"
        " first one's prompt",
    }.items():
        for where in settings:
            value = where.get(key) if isinstance(where, Mapping) else getattr(where, key, None)
            if value is not None and not (key == "guidance_scale" and value == 1):
                raise ConfigError(f"{key}={value} {reason}; leave {key} out")
