"""What one prompt comes to by all that a recipe says: rate, dropout, optimizer, schedule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from statistics import mean
from typing import NamedTuple

from recording import BACKBONES, Record, Run, has_dropout, identity, meant_pooling

from peft_smop.names import DESCRIBED, PROMPT_SPREADS
from peft_smop.training import absolute_rate

OF_RECIPES = {"dropout", "optimizer", "pooling", "schedule"}
"""Options by which trainings of one prompt are held against each other."""


class Trial(NamedTuple):
    """How one prompt was trained, beside its length and place."""

    steps: int
    evaluated_every: int
    batch: int
    rate: float
    drops: bool
    pooling: str
    otherwise: str
    """Than the recipe: optimizer, schedule, precision."""


def recipes(records: Iterable[Record]) -> str:
    """One prompt by all that a recipe says, as validation sees it."""
    rows: list[str] = []
    for record in records:
        trials: dict[str, dict[Trial, dict[int, Run]]] = {}
        # one training may be told by its recipe or by its options; the former is kept
        for run in sorted(record["runs"], key=identity):
            if run["name"].startswith("single") and run["options"].keys() <= OF_RECIPES:
                of_name = trials.setdefault(run["name"], {})
                of_name.setdefault(_trial(record["model"], run), {})[run["seed"]] = run
        majority = mean(run["majority"] for run in record["runs"])
        said = f"{record['task']}, {record['model']}, {majority:.1f}"
        for name, found in sorted(trials.items()):
            if len(found) > 1:
                rows += _tried(record["model"], f"{said} | {name}", found)
    head = (
        "| task, backbone, majority | method | steps, every, of | rate | dropout | head reads |"
        " otherwise |"
        " recipe | validation, by seed | mean |"
        "\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    return "\n".join([head, *rows])


def _trial(model: str, run: Run) -> Trial:
    drops = has_dropout(model) and _drops(run)
    pooling = run["options"].get("pooling", meant_pooling(model, run["name"], run["recipe"]))
    resolved = {"dropout", "pooling"}
    told = [str(value) for name, value in run["options"].items() if name not in resolved]
    told += ["bf16"] if run["precision"] == "bfloat16" else []
    numbers = (run["steps"], run["evaluated_every"], run["batch"], run["rate"])
    return Trial(*numbers, drops, pooling, ", ".join(told))


def _tried(model: str, said: str, found: Mapping[Trial, Mapping[int, Run]]) -> Iterator[str]:
    usual = model in BACKBONES and absolute_rate(PROMPT_SPREADS[0], BACKBONES[model].spread)
    for trial, runs in sorted(found.items()):
        dropout = ("on" if trial.drops else "off") if has_dropout(model) else "none"
        of_recipe = trial.otherwise in ("", "bf16")
        is_paper = of_recipe and trial.rate == 0.5 and dropout != "off" and trial.pooling == "own"
        by_default = meant_pooling(model, "single", "default")
        is_default = (
            of_recipe and trial.rate == usual and not trial.drops and trial.pooling == by_default
        )
        has_choice = by_default != "own"
        each = {seed: runs[seed]["validation"] for seed in sorted(runs)}
        cells = (
            said,
            f"{trial.steps:,}, {trial.evaluated_every}, {trial.batch}",
            f"{trial.rate:g}",
            dropout,
            {"own": "first token", "mean": "mean"}[trial.pooling] if has_choice else "",
            trial.otherwise,
            ", ".join(["paper"] * is_paper + ["default"] * is_default),
            ", ".join(f"{seed}: {score:.1f}" for seed, score in each.items()),
            f"{mean(each.values()):.1f}",
        )
        yield f"| {' | '.join(cells)} |"


def _drops(run: Run) -> bool:
    """Whether the backbone's dropout was on while one prompt was trained."""
    drops: bool = run["options"].get("dropout", DESCRIBED["single"].drops(run["recipe"]))
    return drops
