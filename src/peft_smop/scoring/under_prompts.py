"""What a mixture answers under each of its prompts, and which of them it is no worse without."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from peft_smop.errors import ConfigError
from peft_smop.scoring.evaluation import Prediction, predict
from peft_smop.scoring.formulation import Formulation, to_device
from peft_smop.tasks import Example
from peft_smop.tuner import SMoPModel
from peft_smop.tuner.deciding import router_inputs
from peft_smop.tuner.refit import STRENGTHS, JudgedRows

FEWEST = 2
"""A router with less has nothing to decide, and nobody could say what it is worth."""
LEAST_EXAMPLES = 6
"""Examples to a prompt below which none is taken away: of sixteen needed alike, at three to each
0.65 of them go by chance, at six none (means of 20 draws)."""
MOST_LOSS = 100.0
"""At which a loss is cut, so that differences of infinite ones are numbers."""


@dataclass(frozen=True)
class UnderPrompts:
    """Answers to n examples with m labels, under each of k prompts and the router's choice."""

    truth: NDArray[np.int64]
    """The true labels, (n)."""
    routed: NDArray[np.int64]
    """The labels given under the router's choice, (n)."""
    routes: NDArray[np.int64]
    """The prompts that it chose, (n)."""
    likely: Float[Tensor, "k n m"]
    """The log-probability of every label, normalised over the labels."""
    router: Float[Tensor, "n k"]
    """The router's logits."""
    inputs: Float[Tensor, "n e"]
    """What the router reads."""

    @property
    def given(self) -> NDArray[np.int64]:
        """The labels given under each prompt, (k, n)."""
        return self.likely.argmax(dim=-1).numpy()

    @property
    def losses(self) -> Float[Tensor, "k n"]:
        """-log p of every true label under each prompt; no number, or too many, is `MOST_LOSS`."""
        likely = self.likely[:, torch.arange(len(self.truth)), torch.from_numpy(self.truth)]
        return -likely.nan_to_num(nan=-MOST_LOSS).clamp(min=-MOST_LOSS)

    def keeping(self, prompts: Sequence[int]) -> UnderPrompts:
        """The same of a router that has some of the prompts alone, and chooses the likeliest."""
        own = list(prompts)
        return replace(self, likely=self.likely[own])._routed(self.router[:, own])

    def routed_by(self, matrix: Float[Tensor, "e k"]) -> UnderPrompts:
        """The same of another router, which chooses the likeliest."""
        return self._routed(self.inputs @ matrix)

    def _routed(self, router: Float[Tensor, "n k"]) -> UnderPrompts:
        routes = router.argmax(dim=1)
        routed = self.likely[routes, torch.arange(len(self.truth))].argmax(dim=-1)
        return replace(self, router=router, routes=routes.numpy(), routed=routed.numpy())

    @property
    def loss(self) -> float:
        """Mean -log p of the true labels, each under the prompt that was chosen."""
        chosen = self.losses[torch.from_numpy(self.routes), torch.arange(len(self.truth))]
        return chosen.double().mean().item()


def answer_under_prompts(
    model: nn.Module,
    formulation: Formulation,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> UnderPrompts:
    """Answer every example under the router's choice and under each prompt.

    Args:
        model: with one active SMoP adapter.
        formulation: how the task is put to it.
        examples: labelled examples.
        batch_size: examples in a pass.
        on_batch: called with the number of examples done in each batch, k + 1 times over all.

    Raises:
        ConfigError: the adapter has no router.
    """
    tuner, adapter = SMoPModel.of(model), SMoPModel.adapter_of(model)
    if tuner is None or adapter is None or adapter.router is None:
        raise ConfigError(
            "what routing is worth can only be said of an adapter with a router; this one has none"
            " (try smop train --method smop-posterior)"
        )

    def answers() -> list[Prediction]:
        return predict(model, formulation, examples, batch_size=batch_size, on_batch=on_batch)

    routed, forced = answers(), []
    for j in range(adapter.prompts.shape[0]):
        with tuner.forced_prompt(j):
            forced.append([p.log_probabilities for p in answers()])
    layer, name, read = tuner.smop_layer, tuner.active_adapters[0], []
    for i in range(0, len(examples), batch_size):
        batch = formulation.collate([formulation.encode(e) for e in examples[i : i + batch_size]])
        read.append(router_inputs(layer, name, to_device(batch, adapter.prompts.device)))
    inputs = torch.cat(read)
    return UnderPrompts(
        truth=np.array([example.label for example in examples]),
        routed=np.array([p.label for p in routed]),
        routes=np.array([p.prompt for p in routed]),
        likely=torch.tensor(forced).log_softmax(dim=-1),
        router=(inputs @ adapter.router_matrix().detach()).cpu(),
        inputs=inputs.cpu(),
    )


def better_router(
    found: UnderPrompts, judged: JudgedRows
) -> tuple[UnderPrompts, Float[Tensor, "e k"]] | None:
    """The router that fits judged rows best by the loss of these examples; None: the one they have.

    Args:
        found: answers to examples that are not among the judged rows.
        judged: training rows under the same prompts.
    """
    best = None
    for strength in sorted(STRENGTHS):
        matrix = judged.router(strength)
        routed = found.routed_by(matrix)
        if routed.loss < (found if best is None else best[0]).loss:
            best = routed, matrix
    return best


def worth_keeping(found: UnderPrompts) -> list[int]:
    """The prompts without any of which the examples' loss would rise.

    One after the other those go without which it falls most, or stays: the rows of each are sent to
    the next that the router would choose. `FEWEST` stay in any case, and all where there are fewer
    than `LEAST_EXAMPLES` to each: of a prompt that gets no row among few nothing is known.
    """
    losses, n = found.losses.double(), len(found.truth)
    rows: Int[Tensor, "n"] = torch.arange(n)
    kept = list(range(len(losses)))
    while len(kept) > FEWEST and n >= LEAST_EXAMPLES * len(losses):
        own = torch.tensor(kept)
        logits = found.router[:, own]
        first = logits.argmax(dim=1)
        second = logits.scatter(1, first[:, None], -math.inf).argmax(dim=1)
        rise = losses[own[second], rows] - losses[own[first], rows]
        total = losses.new_zeros(len(kept)).index_add(0, first, rise)
        least = int(total.argmin())
        if total[least] > 0:
            break
        del kept[least]
    return kept
