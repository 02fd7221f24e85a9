"""What methods cost as ratios to the first of them, ours beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from peft_smop.costs import Cost
from peft_smop.names import listed
from peft_smop.report.paper import MEMORY, OPERATIONS, SECONDS, TRAINED, figures, key_of

COST_TABLES = ("1", "9", "10", "11")
"""The averages of the last three are the other costs in Table 1."""
PAPER_COSTS = {TRAINED: "trained", SECONDS: "seconds", MEMORY: "memory", OPERATIONS: "inference"}
"""What the paper's figures are called in `CostRatios.paper`."""


@dataclass(frozen=True)
class CostRatios:
    """One method's costs, each divided by the first method's; what is not known is left out."""

    method: str
    ours: Mapping[str, float]
    """By `trained`, `inference text`, `inference sorted`, `inference random`, `seconds`,
    `memory`."""
    paper: Mapping[str, float]
    """By `trained`, `inference`, `seconds`, `memory`."""


def cost_ratios(costs: Sequence[Cost], *, model: str, tasks: Sequence[str]) -> list[CostRatios]:
    """Divide every method's costs by the first method's.

    Args:
        costs: of at least one method.
        model: the model's name or path; the paper has t5-base and t5-large.
        tasks: what the costs are the mean of; the paper's figures are averaged likewise, and left
            out where it has not all of them.
    """
    first = costs[0].method
    return [
        CostRatios(
            cost.method,
            _divided(_figures(cost), _figures(costs[0])),
            _divided(_paper(cost.method, model, tasks), _paper(first, model, tasks)),
        )
        for cost in costs
    ]


def _figures(cost: Cost) -> dict[str, float]:
    figures = {
        "trained": cost.trainable,
        "inference text": cost.inference.text,
        "inference sorted": cost.inference.sorted,
        "inference random": cost.inference.random,
        "seconds": cost.step.median if cost.step else None,
        "memory": cost.memory,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _paper(method: str, model: str, tasks: Sequence[str]) -> dict[str, float]:
    if method not in listed():
        return {}
    key, name = key_of(listed()[method].method), Path(model).name
    own = [f for f in figures() if (f.key, f.model) == (key, name) and f.table in COST_TABLES]
    if not {figure.task for figure in own}.issuperset(tasks):
        return {}
    found: dict[str, list[float]] = {}
    for figure in own:
        if figure.task in ("", *tasks):  # what is trained belongs to no task
            found.setdefault(PAPER_COSTS[figure.metric], []).append(figure.mean)
    return {cost: mean(values) for cost, values in found.items()}


def _divided(above: Mapping[str, float], below: Mapping[str, float]) -> dict[str, float]:
    return {name: above[name] / below[name] for name in above if below.get(name)}
