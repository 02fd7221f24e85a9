"""What a finished run's routing is worth, on a bounded number of its validation examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from peft_smop.results import Points, RoutingWorth
from peft_smop.scoring import Formulation, UnderPrompts, certificate_of
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
    found: UnderPrompts,
    formulation: Formulation,
    *,
    of: int,
    refitted: bool = False,
    pruned: Sequence[int] = (),
) -> RoutingWorth:
    """The certificate's sentence and the two intervals it rests on, in points, for `result.json`.

    Args:
        found: answers to validation examples under every prompt.
        formulation: how the task was put.
        of: how many there are in all.
        refitted: whether the router was fitted once more.
        pruned: prompts that were taken away.
    """
    said = certificate_of(found, formulation)
    return RoutingWorth(
        part="validation",
        examples=said.examples,
        of=of,
        worth=Points(**asdict(said.worth)),
        regret=Points(**asdict(said.regret)),
        verdict=said.verdict,
        refitted=refitted,
        pruned=tuple(pruned),
    )
