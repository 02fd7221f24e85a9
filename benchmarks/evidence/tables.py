"""The tables of `docs/results.md`, from records alone.

    python benchmarks/evidence/tables.py --again runs/again  # are these the recorded answers?
    python benchmarks/evidence/tables.py --of runs/encoder   # adds runs to records, and shows those
    python benchmarks/evidence/tables.py                     # prints all tables
    python benchmarks/evidence/tables.py --write             # puts all into the page

A table has of every method the learning rate that was best by validation, among those with the most
seeds.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from grouping import (
    AFTER,
    REFERENCE,
    Terms,
    difference,
    groups,
    is_before,
    is_default,
    is_reference,
    placeless,
    reads_of,
    takes,
    terms_of,
    usual_groups,
)
from recipes import recipes
from recording import RECORDS, Record, Run, again, collect, read

from peft_smop.errors import SMoPError
from peft_smop.report import Difference

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
HEAD = (
    "| method | rate, of | steps, every, of | test accuracy | seeds | difference, 95 % |"
    " worth of routing | load | trained |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)
MIXTURE = "smop k=4 l=5 routing=posterior"
SIDE_BY_SIDE = {
    "one prompt, l=5": REFERENCE,
    "one prompt, l=20": "single l=20",
    "mixture as published, k=4": "smop k=4 l=5",
    "mixture by posterior, k=4": MIXTURE,
    "the same, l=20": "smop k=4 l=20 routing=posterior",
    "told the source": "told",
    "LoRA, r=8": "lora r=8",
}
AS_LONG = {REFERENCE: 2.0, "single l=20": 1.4}
"""How many steps of these take as long as one of the mixture (`docs/results.md`)."""
AGAINST = {"l=5": REFERENCE, "l=20": "single l=20", "LoRA": "lora r=8"}


def table(record: Record, *, by_default: bool = True) -> str:
    """A record in Markdown: one prompt of five tokens first, where there is one, then by name.

    Methods are held against it where it took as many steps in the same precision, or else against
    the first row.

    Args:
        record: a task on a backbone.
        by_default: the rows of the default recipe as it is, or else those of all others.
    """
    best = groups(record)
    references = {
        terms_of(record, runs[0]): runs for runs, _ in best[::-1] if is_reference(runs[0])
    }
    rows = []
    for runs, rates in best:
        first = references.get(terms_of(record, runs[0]), best[0][0])
        if by_default is is_default(runs[0]):
            apart = None if runs is first else difference(record, first, runs)
            rows.append(_row(runs, rates, apart))
    return "\n".join([HEAD, *rows]) if rows else ""


def summary(records: Iterable[Record]) -> str:
    """Every task in a row: the methods side by side, each by the default recipe and its best rate.

    All of a row took as many steps in the same precision: those of one prompt with most seeds.
    """
    rows = []
    for record in records:
        usual = usual_groups(record)
        firsts: dict[tuple[bool, str], list[Run]] = {}
        for runs in sorted(usual, key=len, reverse=True):
            if is_reference(runs[0]):
                kind = is_before(record, runs[0]), reads_of(runs[0]) or ""
                firsts.setdefault(kind, runs)
        rows += [_side_by_side(record, firsts[kind], usual) for kind in sorted(firsts)]
    head = ["task, backbone", "steps", *SIDE_BY_SIDE, *(f"mixture less {name}" for name in AGAINST)]
    return _markdown(head, rows)


def _side_by_side(record: Record, first: list[Run], usual: Sequence[list[Run]]) -> list[str]:
    """A task's methods in a row, as far as they share the terms of its first."""
    *terms, before, reads = terms_of(record, first[0])
    found = {
        placeless(runs[0]): runs
        for runs in usual
        if [*terms_of(record, runs[0])][:-2] == terms
        # neither is an option of methods that change weights
        and (is_before(record, runs[0]) == before or not takes("position", runs[0]))
        and (reads_of(runs[0]) == reads or not takes("pooling", runs[0]))
    }
    mixture = found.get(MIXTURE)
    return [
        f"`{record['task']}`, {record['model']}{_short(first[0])}{_otherwise(record, first[0])}",
        f"{first[0]['steps']}",
        *(_mean(found.get(name, ())) for name in SIDE_BY_SIDE.values()),
        *(_apart(record, found.get(name), mixture) for name in AGAINST.values()),
    ]


def equal_time(records: Iterable[Record]) -> str:
    """The mixture by posterior against one prompt that took as many steps as its time buys."""
    head = ["task, backbone", "mixture, steps", "against", "its steps", "mixture less it"]
    rows = []
    for record in records:
        usual = usual_groups(record)
        found = {(placeless(runs[0]), terms_of(record, runs[0])): runs for runs in usual}
        for (name, (_, *rest)), mixture in found.items():
            steps = mixture[0]["steps"]
            for other, times in AS_LONG.items() if name == MIXTURE else ():
                one = found.get((other, (round(times * steps), *rest)))
                if one is not None:
                    cells = [
                        f"`{record['task']}`, {record['model']}{_short(one[0])}"
                        f"{_otherwise(record, one[0])}",
                        f"{_mean(mixture)}, {steps:,}",
                        f"{other} {_mean(one)}",
                        f"{one[0]['steps']:,}",
                        _apart(record, one, mixture),
                    ]
                    rows.append(cells)
    return _markdown(head, rows)


def heads(records: Iterable[Record]) -> str:
    """Every method whose head read the mean, against the same whose head read the first token."""

    def own(record: Record, run: Run) -> tuple[str, Terms] | None:
        *terms, reads = terms_of(record, run)
        return (run["name"], (*terms, "own")) if reads is None else None

    return _beside(records, ("first token", "mean", "mean less first token"), own)


def places(records: Iterable[Record]) -> str:
    """Every method whose prompts stood behind the text, against the same before it."""

    def before(record: Record, run: Run) -> tuple[str, Terms] | None:
        *terms, _, reads = terms_of(record, run)
        return (placeless(run), (*terms, True, reads)) if AFTER in run["name"] else None

    return _beside(records, ("before the text", "behind it", "behind less before"), before)


def _beside(
    records: Iterable[Record],
    columns: Sequence[str],
    other: Callable[[Record, Run], tuple[str, Terms] | None],
) -> str:
    """Methods against the same but for one thing: `other` has the name and terms of that."""
    rows = []
    for record in records:
        usual = usual_groups(record)
        found = {(runs[0]["name"], terms_of(record, runs[0])): runs for runs in usual}
        for runs in usual:
            key = other(record, runs[0])
            first = found.get(key) if key else None
            if first is not None:
                cells = [
                    f"`{record['task']}`, {record['model']}{_short(runs[0])}",
                    placeless(runs[0]),
                    f"{runs[0]['steps']:,}",
                    _mean(first),
                    _mean(runs),
                    _apart(record, first, runs),
                ]
                rows.append(cells)
    return _markdown(["task, backbone", "method", "steps", *columns], rows)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], f"|{' --- |' * len(head)}", *lines[1:]])


def _apart(record: Record, first: Sequence[Run] | None, other: Sequence[Run] | None) -> str:
    apart = difference(record, first, other) if first and other else None
    return "" if apart is None else _points(apart)


def _points(apart: Difference) -> str:
    points, low, high = (round(value, 1) + 0.0 for value in (apart.points, apart.low, apart.high))
    return f"{points:+.1f} ({low:+.1f} to {high:+.1f})"


def _mean(runs: Sequence[Run]) -> str:
    """With the spread of its seeds, and how many there are."""
    test = [run["test"] for run in runs]
    return f"{mean(test):.1f}{_spread(test)} ({len(test)})" if test else ""


def _spread(test: Sequence[float]) -> str:
    return f" ± {stdev(test):.1f}" if len(test) > 1 else ""


def _otherwise(record: Record, run: Run) -> str:
    """What is not as in most rows: where prompts stand, and what a head reads."""
    return (", before the text" if is_before(record, run) else "") + _of_head(run)


def _of_head(run: Run) -> str:
    """That a head read the first token, where the recipe has it read the mean."""
    return ", first token" if reads_of(run) == "own" else ""


def tables_of(records: Mapping[str, Record]) -> dict[str, str]:
    """Every table of the page, by its mark."""
    return {
        "summary": summary(records.values()),
        **{mark: text for name, one in records.items() for mark, text in _of(name, one).items()},
        "equal-time": equal_time(records.values()),
        "heads": heads(records.values()),
        "places": places(records.values()),
        "recipes": recipes(records.values()),
    }


def _of(name: str, record: Record) -> dict[str, str]:
    """A record's table, and that of what was trained otherwise, where something was."""
    otherwise = table(record, by_default=False)
    return {name: table(record)} | ({f"{name}-otherwise": otherwise} if otherwise else {})


def hours(record: Record) -> float:
    """Of training, over the runs of which it is known."""
    return sum(run["seconds"] or 0 for run in record["runs"]) / 3600


def _row(runs: Sequence[Run], rates: int, apart: Difference | None) -> str:
    first = runs[0]
    test = [run["test"] for run in runs]
    said = {name: value for name, value in first["options"].items() if name != "pooling"}
    options = "".join(f" {name}={value}" for name, value in said.items()) + _of_head(first)
    recipe = "" if first["recipe"] == "default" else f", recipe {first['recipe']}"
    recipe += _short(first)
    cells = [
        f"{first['name']}{options}{recipe}",
        f"{first['rate']:g}, {rates}",
        f"{first['steps']:,}, {first['evaluated_every']}, {first['batch']}",
        f"{mean(test):.1f}{_spread(test)}",
        ", ".join(f"{score:.1f}" for score in test),
        "" if apart is None else _points(apart),
        ", ".join(_worth(run["routing"]) for run in runs if run["routing"] is not None),
        "; ".join(_load(run["load"]) for run in runs if len(run["load"]) > 1),
        f"{first['trainable']:,}",
    ]
    return f"| {' | '.join(cells)} |"


def _short(run: Run) -> str:
    """A precision that is not fp32."""
    return ", bf16" if run["precision"] == "bfloat16" else ""


def _worth(routing: Mapping[str, Any]) -> str:
    return f"{routing['worth']['low']:+.1f} to {routing['worth']['high']:+.1f}"


def _load(shares: Sequence[float]) -> str:
    return " ".join(f"{100 * share:.0f}" for share in sorted(shares, reverse=True))


def written_into(page: str, tables: Mapping[str, str]) -> str:
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


def _held_against_records(stores: Iterable[Path]) -> int:
    """Say of every run whether its answers are those recorded; 1 where some are not."""
    differs = False
    for one in again(stores):
        same = one.recorded == one.test and not one.others
        differs = differs or not same
        if one.recorded is None:
            said = "not in the records"
        elif one.others is None:
            said = f"{'the same' if same else 'another'} score, of which no answers are recorded"
        elif same:
            said = "the same answers"
        else:
            said = f"{one.others} other answers, recorded {one.recorded:.1f}"
        print(f"{one.path.name}: {one.test:.1f}, {said}", flush=True)
    return int(differs)


def main() -> None:
    """Collect, print or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--of", nargs="+", type=Path, help="stores with finished runs")
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    parser.add_argument("--again", nargs="+", type=Path, help="stores to hold against the records")
    given = parser.parse_args()
    if given.again and (given.of or given.write):
        parser.error("--again changes nothing; leave --of and --write out")
    try:
        if given.again:
            parser.exit(_held_against_records(given.again))
        changed = collect(given.of or ())
    except SMoPError as error:
        parser.exit(2, f"error: {error}\n")
    for path in changed:
        print(f"runs were added to {path}")
    records = {path.stem: read(path) for path in sorted(RECORDS.glob("*.json"))}
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(written_into(page, tables_of(records)), encoding="utf-8")
        return
    shown = {path.stem: records[path.stem] for path in changed} if given.of else records
    for name, record in shown.items():
        print(f"{name}: {len(record['runs'])} runs, {hours(record):.1f} hours")
    tables = [_of(*one) for one in shown.items()] if given.of else [tables_of(records)]
    for name, text in (one for own in tables for one in own.items()):
        print(f"\n{name}\n\n{text}")


if __name__ == "__main__":
    main()
