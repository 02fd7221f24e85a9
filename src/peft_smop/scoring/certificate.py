"""What routing is worth: a mixture's score beside those without a router, and the best there is.

Every example is answered under each of the adapter's prompts (`forced_prompt`) and under the
router's choice. From those answers follow the others; no model is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import mutual_info_score
from torch import nn

from peft_smop.scoring.formulation import Formulation
from peft_smop.scoring.metrics import Figures, compute, drawn
from peft_smop.scoring.under_prompts import UnderPrompts, answer_under_prompts
from peft_smop.tasks import Example

RESAMPLES = 1000
LITTLE_GAIN = 5.0
"""Points that the best prompt of each row adds to one prompt, up to which that is chance."""
SHUFFLES = 200


@dataclass(frozen=True)
class Interval:
    """A value, and the 95 % interval that chance over examples leaves, in per cent or points."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Informed:
    """How much the routes tell of something, in nats, beside what shuffled values would tell."""

    value: float
    shuffled: float
    """The 95th percentile over shuffled values: below it a route tells nothing."""


@dataclass(frozen=True)
class Certificate:
    """Scores of one adapter on the same examples, by who chooses the prompt."""

    metric: str
    examples: int
    router: Interval
    """By the router's choice."""
    single: Interval
    """With one prompt for all rows, the one that is best on these examples."""
    best_prompt: int
    uniform: Interval
    """With the mean of all prompts' probabilities."""
    random: Interval
    """With a random prompt for every row."""
    bound: Interval
    """With the prompt, for every row, under which the true label is most probable."""
    worth: Interval
    """The router's score less the best single prompt's, in points."""
    regret: Interval
    """The bound less the router's score, in points."""
    disagreement: float
    """Share of the examples to which not all prompts give the same answer, in per cent."""
    load: tuple[float, ...]
    information: dict[str, Informed]
    """Of the routes with label, length and, where it is known, population."""
    table: dict[str, dict[str, tuple[float, ...]]]
    """For label and population, of each value the share of its rows that each prompt gets."""

    @property
    def verdict(self) -> str:
        """One sentence."""
        low, high = self.worth.low, self.worth.high
        if self.disagreement == 0:
            return (
                "all prompts give the same answers here: there is nothing to choose between, and"
                " nothing to say of the task (was the adapter trained long enough?)"
            )
        if low > 0:
            return (
                f"routing is worth {low:+.1f} to {high:+.1f} points over the best single prompt"
                " here"
            )
        if high < 0:
            gain = self.bound.value - self.single.value
            why = "this task needs one prompt"
            if gain > LITTLE_GAIN:
                why = (
                    "one prompt does better than this router, though the best prompt of each row"
                    f" would add {gain:.1f} points to it (was it trained long enough?)"
                )
            return (
                f"routing costs {-high:.1f} to {-low:.1f} points against the best single prompt"
                f" here: {why}"
            )
        return (
            f"routing is worth {low:+.1f} to {high:+.1f} points over the best single prompt here,"
            " an interval that holds 0: nothing shows that this task needs more than one prompt"
        )


def certify(
    model: nn.Module,
    formulation: Formulation,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Certificate:
    """Answer every example under every prompt, and compare.

    Args:
        model: with one active SMoP adapter.
        formulation: how the task is put to it.
        examples: labelled examples.
        batch_size: examples in a pass.
        seed: of the bootstrap and of random routes.
        on_batch: called with the number of examples done in each batch, k + 1 times over all.

    Raises:
        ConfigError: the adapter has no router.
    """
    found = answer_under_prompts(
        model, formulation, examples, batch_size=batch_size, on_batch=on_batch
    )
    return certificate_of(found, formulation, examples, seed=seed)


def certificate_of(
    found: UnderPrompts,
    formulation: Formulation,
    examples: Sequence[Example] = (),
    *,
    seed: int = 0,
) -> Certificate:
    """Compare what was answered under every prompt.

    The best single prompt is chosen on these very examples, anew in every resample, so that what is
    said of the router's worth is cautious; less so where the router itself, or which prompts it
    has, was chosen by them too, as at the end of a run.

    Args:
        found: the answers to the examples.
        formulation: how the task was put.
        examples: those, to say what routes tell of them; none: it is not asked, and takes longer
            than all else.
        seed: of the bootstrap and of random routes.
    """
    truth, given, routes, likely = found.truth, found.given, found.routes, found.likely
    k, n, generator = len(given), len(truth), np.random.default_rng(seed)
    best = found.losses.argmin(dim=0).numpy()
    metric, labels = formulation.task.metric, len(formulation.task.labels)
    by = {
        "router": found.routed,
        "uniform": likely.exp().mean(dim=0).argmax(dim=-1).numpy(),
        "random": given[generator.integers(0, k, n), np.arange(n)],
        "bound": given[best, np.arange(n)],
    }

    def measured(weights: Figures | None) -> dict[str, Figures]:
        def scores(own: NDArray[np.int64]) -> Figures:
            return 100 * compute(metric, truth, own, labels, weights=weights)

        found = {what: scores(own) for what, own in by.items()}
        found["single"] = np.max([scores(own) for own in given], axis=0)
        found["worth"] = found["router"] - found["single"]
        found["regret"] = found["bound"] - found["router"]
        return found

    whole = measured(None)
    draws = measured(drawn(generator, n, RESAMPLES))
    ends = {what: np.percentile(own, [2.5, 97.5]) for what, own in draws.items()}
    intervals = {
        what: Interval(value.item(), float(ends[what][0]), float(ends[what][1]))
        for what, value in whole.items()
    }
    groups = _groups(formulation, examples) if examples else {}
    return Certificate(
        metric=metric,
        examples=n,
        best_prompt=int(np.argmax([compute(metric, truth, own, labels) for own in given])),
        disagreement=100 * float((given != given[0]).any(axis=0).mean()),
        load=tuple(float((routes == j).mean()) for j in range(k)),
        information={what: _informed(routes, of, generator) for what, of in groups.items()},
        table={what: _table(routes, groups[what], k) for what in groups if what != "length"},
        **intervals,
    )


def _groups(formulation: Formulation, examples: Sequence[Example]) -> dict[str, list[str]]:
    """What routes may tell of: values of every example, by kind."""
    lengths = [len(formulation.encode(example)["input_ids"]) for example in examples]
    fourths = np.quantile(lengths, [0.25, 0.5, 0.75])
    groups = {
        "label": [formulation.task.labels[e.label or 0] for e in examples],
        "length": [str(int(np.searchsorted(fourths, length))) for length in lengths],
    }
    if all(example.population is not None for example in examples):
        groups["population"] = [str(example.population) for example in examples]
    return groups


def _informed(
    routes: NDArray[np.int64], of: Sequence[str], generator: np.random.Generator
) -> Informed:
    shuffled = [mutual_info_score(routes, generator.permutation(of)) for _ in range(SHUFFLES)]
    return Informed(float(mutual_info_score(routes, of)), float(np.percentile(shuffled, 95)))


def _table(routes: NDArray[np.int64], of: Sequence[str], k: int) -> dict[str, tuple[float, ...]]:
    values = np.array(of)
    return {
        value: tuple(float((routes[values == value] == j).mean()) for j in range(k))
        for value in sorted(set(of))
    }
