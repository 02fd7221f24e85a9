"""What methods cost as ratios to the first of them, ours beside the paper's."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from peft_smop.costs import Cost

PAPER_COSTS = Path(__file__).with_name("paper_costs.csv")
"""The paper's figures: the trained parameters of its Table 1, and its Tables 9 to 11, whose
averages are the other costs in Table 1. No figure of ours stands there."""


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
    with PAPER_COSTS.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    mine = [r for r in rows if (r["method"], r["model"]) == (method, Path(model).name)]
    return {
        row["cost"]: mean(float(row[task]) for task in tasks)
        for row in mine
        if all(task in row for task in tasks)
    }


def _divided(above: Mapping[str, float], below: Mapping[str, float]) -> dict[str, float]:
    return {name: above[name] / below[name] for name in above if below.get(name)}
