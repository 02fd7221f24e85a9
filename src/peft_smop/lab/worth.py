"""What a finished run's routing is worth, on a bounded number of its validation examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
from torch import nn

from peft_smop.results import Points, RoutingWorth
from peft_smop.scoring import Formulation, certify
from peft_smop.tasks import Example

MOST_EXAMPLES = 1_000
"""An interval of 1,000 examples is some three points to each side; more would cost more than it
tells, and `smop routes` takes them all."""
MOST_ANSWERS = 20_000
"""Over all k + 1 evaluations: from k = 20 on, examples are fewer, 307 at k = 64, so that a run with
many prompts does not take longer to be looked at than to be trained."""


def examples_to_certify(
    examples: Sequence[Example], *, num_prompts: int, seed: int
) -> Sequence[Example]:
    """All examples, or where they are too many, a part that the seed draws, in their order."""
    most = max(1, min(MOST_EXAMPLES, MOST_ANSWERS // (num_prompts + 1)))
    if len(examples) <= most:
        return examples
    chosen = np.random.default_rng(seed).permutation(len(examples))[:most]
    return [examples[i] for i in sorted(chosen)]


def routing_worth(
    model: nn.Module,
    formulation: Formulation,
    examples: Sequence[Example],
    *,
    of: int,
    on_batch: Callable[[int], None] | None = None,
) -> RoutingWorth:
    """The certificate's sentence and the two intervals it rests on, in points, for `result.json`.

    Args:
        model: with one active SMoP adapter that has a router.
        formulation: how the task is put to it.
        examples: labelled validation examples.
        of: how many there are in all.
        on_batch: called with the number of examples done in each batch, k + 1 times over all.
    """
    found = certify(model, formulation, examples, on_batch=on_batch)
    return RoutingWorth(
        part="validation",
        examples=found.examples,
        of=of,
        worth=Points(**asdict(found.worth)),
        regret=Points(**asdict(found.regret)),
        verdict=found.verdict,
    )
