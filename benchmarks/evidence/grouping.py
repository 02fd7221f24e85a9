"""A record's runs as methods, and what each of them may be held against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import mean

from recording import TOLD_APART, Record, Run

from peft_smop.names import DESCRIBED
from peft_smop.report import Difference, paired_bootstrap

REFERENCE = "single l=5"
AFTER = " position=after"
"""How a record says that prompts stand behind the text."""
Terms = tuple[int | str | None, ...]
"""Steps, precision, kind of CPU, place of prompts, and what a head reads."""


def groups(record: Record) -> list[tuple[list[Run], int]]:
    """A record's runs that differ in their seeds alone, each with how many rates were tried."""
    found: dict[str, list[Run]] = {}
    for run in sorted(record["runs"], key=_order):
        found.setdefault(json.dumps([run[key] for key in TOLD_APART]), []).append(run)
    return [_best_rate(runs) for runs in found.values()]


def _best_rate(runs: Sequence[Run]) -> tuple[list[Run], int]:
    """The runs, by seed, of one learning rate; how many rates were tried.

    Of the rates with the most seeds, as one with fewer may owe its mean to the seeds that it has,
    the best by mean validation score.
    """
    by_rate: dict[float, dict[int, Run]] = {}
    for run in runs:
        by_rate.setdefault(run["rate"], {})[run["seed"]] = run
    best = max(
        by_rate.values(),
        key=lambda own: (len(own), mean(run["validation"] for run in own.values())),
    )
    return [best[seed] for seed in sorted(best)], len(by_rate)


def _order(run: Run) -> tuple[bool, str, bool, str, int]:
    said = json.dumps(run["options"])
    return not is_reference(run), run["name"], run["recipe"] != "default", said, run["steps"]


def usual_groups(record: Record) -> list[list[Run]]:
    """Those of the default recipe as it is, or but for what a head reads, most seeds last."""
    return sorted((runs for runs, _ in groups(record) if is_default(runs[0])), key=len)


def difference(record: Record, first: Sequence[Run], other: Sequence[Run]) -> Difference | None:
    """The other's points over the first's, by the seeds and examples that both have."""
    told = [
        {run["seed"]: run["predicted"] for run in runs if run["predicted"] is not None}
        for runs in (first, other)
    ]
    shared = sorted(set(told[0]) & set(told[1]))
    if not shared:
        return None
    truths = {seed: record["truth"][str(seed)] for seed in shared}
    # the test examples of a task may be other ones for each seed
    alike = len({json.dumps(truth) for truth in truths.values()}) == 1
    one, two = (
        {
            (seed, str(i) if alike else f"{seed}-{i}"): (truth, of_seed[seed][i])
            for seed in shared
            for i, truth in enumerate(truths[seed])
        }
        for of_seed in told
    )
    return paired_bootstrap(one, two, metric=record["metric"], labels=record["labels"])


def terms_of(record: Record, run: Run) -> Terms:
    """What a run and the one it is held against should share."""
    cpu, before = run["options"].get("cpu"), is_before(record, run)
    return run["steps"], run["precision"], cpu, before, reads_of(run)


def is_reference(run: Run) -> bool:
    """Whether others are held against a run: one prompt of five tokens."""
    is_usual = run["recipe"] == "default" and run["options"].keys() <= {"cpu", "pooling"}
    return placeless(run) == REFERENCE and is_usual


def is_default(run: Run) -> bool:
    """Whether a run is by the default recipe as it is, or but for what a head reads."""
    return run["recipe"] == "default" and run["options"].keys() <= {"pooling"}


def reads_of(run: Run) -> str | None:
    """What the head was told to read against the recipe."""
    reads: str | None = run["options"].get("pooling")
    return reads


def takes(option: str, run: Run) -> bool:
    """Whether a run's method has an option."""
    return option in DESCRIBED[run["name"].split()[0]].options


def is_before(record: Record, run: Run) -> bool:
    """Whether prompts stand before the text, where others of the record stand behind it."""
    if not takes("position", run) or AFTER in run["name"]:
        return False
    return any(AFTER in one["name"] for one in record["runs"])


def placeless(run: Run) -> str:
    """A method's name without the place of its prompts, which all of a backbone share."""
    return str(run["name"]).replace(AFTER, "")
