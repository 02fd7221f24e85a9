"""Where a causal LM's head is computed: at the places whose verdict on an answer is read.

    input      t0 t1 t2 a0 a1 <end> .        b rows of n tokens, answers within
    labels     .  .  .  a0 a1 <end> .
    verdicts       of t2 a0 a1               t places of all rows, instead of b·n

A head is as large as the vocabulary, and most of a text has no label.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn

from peft_smop.rows.calls import Call, calling, current

IGNORED_LABEL = -100


@dataclass(eq=False)
class _Answers(Call):
    """Passes of which only the verdicts on labels are read."""

    rows: Int[Tensor, "t"] | None = None
    places: Int[Tensor, "t"] | None = None
    length: int = 0
    """Of a row, in tokens; prompts may stand before it."""

    @property
    def says_something(self) -> bool:
        """A compiled pass would not notice."""
        return True

    def without_labels(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Take the labels from the model, behind whatever else reads them: it computes no loss."""
        if current(module, _Answers) is None or kwargs.get("labels") is None:
            return None
        return args, {**kwargs, "labels": None}

    def narrowed(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Give the head the states at the places alone, (t, e).

        In two dimensions: three would make a CPU copy the head's whole weight.
        """
        if current(self.owner, _Answers) is not self or args[0].dim() != 3:
            return None
        states: Tensor = args[0]
        assert self.rows is not None
        assert self.places is not None
        first = states.shape[1] - self.length
        at = self.rows * states.shape[1] + first + self.places
        at = at.to(states.device, non_blocking=True)
        return (states.flatten(0, 1).index_select(0, at), *args[1:])


@contextmanager
def answers_only(model: nn.Module, labels: Int[Tensor, "b n"]) -> Iterator[None]:
    """Within, a causal LM is asked for its verdicts on labels alone, and computes no loss itself.

    The labels may be given to it all the same, for whoever routes by them. Read the logits with
    `verdicts`, which come as (t, v) where the head is a plain linear layer. Other threads' passes,
    and passes within for other labels, are not touched.

    Args:
        model: bare, or in PEFT's and a trainer's wrappers.
        labels: of the passes within.
    """
    inner = getattr(model, "module", model)
    base: Any = inner.get_base_model() if isinstance(inner, PeftModel) else inner
    head: Any = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    rows, places = _places(labels)
    call = _Answers(base, rows=rows, places=places, length=labels.shape[1])
    hooks = [base.register_forward_pre_hook(call.without_labels, with_kwargs=True)]
    # a head of another kind may want to know of which rows its states are
    if type(head) is nn.Linear:
        hooks.append(head.register_forward_pre_hook(call.narrowed))
    try:
        with calling(call):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def verdicts(
    logits: Float[Tensor, "b s v"] | Float[Tensor, "t v"], labels: Int[Tensor, "b n"]
) -> tuple[Float[Tensor, "t v"], Int[Tensor, "t"], Int[Tensor, "t"]]:
    """What a causal LM says of the labels that count.

    Args:
        logits: of every place of its input, perhaps with prompts in front (s ≥ n), or of
            `answers_only`.
        labels: of the input; a logit is the verdict on the token after it.

    Returns:
        The logits of t labels in fp32, the labels, and their rows.
    """
    rows, places = _places(labels)
    if logits.dim() == 3:
        first = logits.shape[1] - labels.shape[1]
        logits = logits[_beside(logits, rows), _beside(logits, places + first)]
    targets = labels[rows, places + 1]
    return logits.float(), _beside(logits, targets), rows


def _places(labels: Int[Tensor, "b n"]) -> tuple[Int[Tensor, "t"], Int[Tensor, "t"]]:
    """The rows and places before the labels that count: where a model gives its verdict on them."""
    rows, places = torch.nonzero(labels[:, 1:] != IGNORED_LABEL, as_tuple=True)
    return rows, places


def _beside(logits: Tensor, numbers: Tensor) -> Tensor:
    return numbers.to(logits.device, non_blocking=True)
