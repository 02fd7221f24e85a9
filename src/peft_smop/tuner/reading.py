"""What is read of each row of a pass: by its router, and by the hash that its draws hang on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError
from peft_smop.rows import RowAdapters, on_device
from peft_smop.tuner.layer import Adapter
from peft_smop.tuner.noise import embedding_fingerprints, fingerprints
from peft_smop.tuner.scope import Scope, context_mask, first_tokens


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


def content_of(
    adapters: Mapping[str, Adapter],
    rows: RowAdapters,
    x: Float[Tensor, "b n e"],
    ids: Int[Tensor, "b n"] | None,
    read: Bool[Tensor, "b n"] | None,
    *,
    training: bool,
) -> Int[Tensor, "b"] | None:
    """A hash of what is read of each row, where a strategy draws by it or reads it.

    Raises:
        ConfigError: a strategy reads tokens, and the model was given embeddings.
    """
    strategies = [adapters[name].strategy for name in rows.names]
    if ids is None and any(strategy.reads_content for strategy in strategies):
        raise ConfigError("routing='hashed' hashes token ids; give input_ids, not inputs_embeds")
    if not any(s.reads_content or (training and s.is_random) for s in strategies):
        return None
    return embedding_fingerprints(x, read) if ids is None else fingerprints(ids, read)
