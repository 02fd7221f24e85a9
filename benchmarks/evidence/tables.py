"""What finished runs came to, as records, and the tables of `docs/results.md`, from records alone.

    python benchmarks/evidence/tables.py --of runs/encoder   # checks the runs, writes records
    python benchmarks/evidence/tables.py                     # prints every record's table
    python benchmarks/evidence/tables.py --write             # puts the tables into the page

A record is one task on one backbone: every method's seeds with their scores, the certificate of
each mixture, and the difference from one prompt, or else the first method, on the same examples.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from peft_smop.report import Row, compare
from peft_smop.report.gathering import Group, gather

HERE = Path(__file__).parent
RECORDS = HERE / "records"
PAGE = HERE.parents[1] / "docs" / "results.md"
HEAD = (
    "| method | test accuracy | seeds | difference, 95 % | worth of routing | load | trained |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def record(groups: Sequence[Group]) -> dict[str, Any]:
    """Everything that a table of these methods says, and the conditions.

    Args:
        groups: of one task and one backbone; the first is what the others are held against.
    """
    first = groups[0].runs[0].result
    methods = []
    for group in groups:
        seeds = [run.result.seed for run in group.runs]
        row = _beside(groups[0], group) if group is not groups[0] else None
        methods.append(
            {
                "name": group.label,
                "seeds": seeds,
                "test": [round(score, 3) for score in group.scores],
                "validation": [round(run.result.validation.score, 3) for run in group.runs],
                "learning_rate": group.runs[0].result.training.learning_rate,
                "recipe": group.runs[0].result.training.recipe,
                "steps": [run.result.training.steps for run in group.runs],
                "best_step": [run.result.training.best_step for run in group.runs],
                "trainable": group.runs[0].result.parameters.trainable,
                "load": [run.result.test.load for run in group.runs],
                "routing": [
                    None if run.result.routing is None else run.result.routing.model_dump()
                    for run in group.runs
                ],
                "difference": None if row is None else asdict(row)["difference"],
            }
        )
    return {
        "task": Path(groups[0].task).stem,
        "model": Path(groups[0].model).name,
        "examples": first.test.examples,
        "majority": first.test.majority,
        "split": first.split,
        "environment": first.environment,
        "methods": methods,
    }


def _beside(first: Group, other: Group) -> Row:
    """The other's row, held against the first by the seeds that both have."""
    seeds = [{run.result.seed for run in group.runs} for group in (first, other)]
    shared = seeds[0] & seeds[1]
    paths = [
        [run.path for run in group.runs if run.result.seed in shared] for group in (first, other)
    ]
    return compare(dict(zip(("first", "other"), paths, strict=True)))[-1]


def collect(stores: Iterable[Path]) -> list[Path]:
    """Write a record for each task and backbone of finished runs, every file of which is checked.

    Returns:
        The records.
    """
    by_task: dict[tuple[str, str], list[Group]] = {}
    for group in gather(stores):
        by_task.setdefault((Path(group.model).name, Path(group.task).stem), []).append(group)
    RECORDS.mkdir(exist_ok=True)
    written = []
    for (model, task), groups in by_task.items():
        groups.sort(key=lambda group: dict(group.key)["name"] != "single")
        path = RECORDS / f"{task}-{model}.json"
        path.write_text(json.dumps(record(groups), indent=1) + "\n", encoding="utf-8")
        written.append(path)
    return written


def table(told: dict[str, Any]) -> str:
    """A record in Markdown."""
    return "\n".join([HEAD, *(_row(method) for method in told["methods"])])


def _row(method: dict[str, Any]) -> str:
    test = method["test"]
    spread = f" ± {stdev(test):.1f}" if len(test) > 1 else ""
    each = ", ".join(f"{score:.1f}" for score in test)
    difference = method["difference"]
    apart = (
        ""
        if difference is None
        else f"{difference['points']:+.1f} ({difference['low']:+.1f} to {difference['high']:+.1f})"
    )
    worth = ", ".join(
        f"{one['worth']['low']:+.1f} to {one['worth']['high']:+.1f}"
        for one in method["routing"]
        if one is not None
    )
    load = "; ".join(
        " ".join(f"{100 * share:.0f}" for share in sorted(one, reverse=True))
        for one in method["load"]
        if len(one) > 1
    )
    return (
        f"| {method['name']} | {mean(test):.1f}{spread} | {each} | {apart} | {worth} | {load} |"
        f" {method['trainable']:,} |"
    )


def written_into(page: str, tables: dict[str, str]) -> str:
    """A page whose marked tables are those of the records.

    Raises:
        ValueError: the page has no place for a record, or a place for what is no record.
    """
    places = re.findall(r"<!-- table: (\S+) -->", page)
    if sorted(places) != sorted(tables):
        raise ValueError(f"the page has tables for {sorted(places)}, records {sorted(tables)}")
    for name, text in tables.items():
        mark = f"<!-- table: {name} -->\n"
        before, after = page.split(mark)
        after = re.sub(r"\A(\|.*\n)*", "", after)
        page = f"{before}{mark}{text}\n{after}"
    return page


def main() -> None:
    """Collect, print or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", nargs="+", type=Path, help="stores with finished runs")
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    given = parser.parse_args()
    for path in collect(given.of) if given.of else ():
        print(path)
    told = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(RECORDS.glob("*.json"))
    }
    tables = {name: table(one) for name, one in told.items()}
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(written_into(page, tables), encoding="utf-8")
    elif not given.of:
        for name, text in tables.items():
            print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
