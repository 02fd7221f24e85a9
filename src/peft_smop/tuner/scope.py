"""Which tokens of a row a router reads; never an answer's.

A causal LM sees the answer in its input while it trains, and not when it is asked. A router that
read it would learn to choose by the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from peft_smop.errors import ConfigError
from peft_smop.rows import RowAdapters, on_device
from peft_smop.tuner.noise import embedding_fingerprints, fingerprints

if TYPE_CHECKING:
    from peft_smop.tuner.layer import Adapter

IGNORED_LABEL = -100


Scope = Literal["input", "context"] | int
"""What a router reads of a row.

"input": every attended token. "context": the tokens before the first label that is not -100. A
whole number: that many first attended tokens, which is causal whatever follows.
"""


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


def first_tokens(attended: Bool[Tensor, "b n"], count: int) -> Bool[Tensor, "b n"]:
    """The first attended tokens of every row."""
    return attended & (attended.cumsum(dim=1) <= count)


def context_mask(labels: Int[Tensor, "b n"], attended: Bool[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
    """The attended tokens before the first label that counts.

    Raises:
        ConfigError: a row's labels leave no token before the answer.
    """
    context = attended & ((labels != IGNORED_LABEL).cumsum(dim=1) == 0)
    require(
        (context.any(dim=1) | ~attended.any(dim=1)).all(),
        "labels begin at the first token of a row, which leaves no text before the answer for the"
        " router to read; mask the question's labels with -100, or say how many first tokens the"
        " router reads: SMoPConfig(router_scope=16)",
    )
    return context


def check_one_sequence(positions: Int[Tensor, "b n"], attended: Bool[Tensor, "b n"] | None) -> None:
    """Refuse rows whose positions start again: they hold several sequences.

    Raises:
        ConfigError: a position is not above the one before it.
    """
    restarts = positions[:, 1:] <= positions[:, :-1]
    if attended is not None:
        restarts = restarts & attended[:, 1:] & attended[:, :-1]
    require(~restarts.any(), SEVERAL_SEQUENCES)


SEVERAL_SEQUENCES = (
    "a row holds several sequences (its positions start again), of which one alone would get"
    " a prompt and a route; give each sequence a row of its own (no packing, no padding-free"
    " collator)"
)


def require(condition: Bool[Tensor, ""], sentence: str) -> None:
    """Refuse data that a mask or label shows to be wrong.

    On the CPU the sentence comes as an error at once. On an accelerator, and in a compiled graph,
    the device checks it when it gets there, so that nothing waits for it.

    Raises:
        ConfigError: the condition does not hold.
    """
    if condition.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(condition, sentence)
    elif not condition:
        raise ConfigError(sentence)
