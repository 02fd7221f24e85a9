"""Which tokens of a row a router may read: not an answer's.

A causal LM sees the answer in its input while it trains, and not when it is asked. A router that
read it would learn to choose by the answer.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from peft_smop.errors import ConfigError
from peft_smop.rows import IGNORED_LABEL

Scope = Literal["input", "context"] | int
"""What a router reads of a row.

"input": every attended token. "context": the tokens before the first label that is not -100. A
whole number: that many first attended tokens, which is causal whatever follows.
"""


def left_padding(mask: Shaped[Tensor, "b n"]) -> Int[Tensor, "b"]:
    """How many slots precede each row's first attended token."""
    return (mask.cumsum(dim=1) == 0).sum(dim=1)


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
        " router to read or for a prompt to follow; mask the question's labels with -100, or, for a"
        " router alone, say how many first tokens it reads: SMoPConfig(router_scope=16)",
    )
    return context


def text_ends(attended: Bool[Tensor, "b n"], labels: Int[Tensor, "b n"] | None) -> Int[Tensor, "b"]:
    """How many slots of each row end with its text: before the first label that counts.

    Without labels, or where none counts, before the padding behind it.

    Raises:
        ConfigError: a row's labels leave no token before the answer.
    """
    slots = torch.arange(1, attended.shape[1] + 1, device=attended.device)
    context = attended if labels is None else context_mask(labels, attended)
    return (context * slots).amax(dim=1)


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
