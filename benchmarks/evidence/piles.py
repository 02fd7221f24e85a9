"""Real texts as tasks, and piles of them whose answers contradict each other by a rule.

    python benchmarks/evidence/piles.py data/text tasks

reads `sst2`, `trec`, `clinc150` and `banking77` (each with train, validation and test as JSON lines
of id, text and label; CLINC150's label is its domain) and writes each of them as a task, and two
piles. Both rules look at nothing but the alphabetical order of a source's labels, and were written
down before any method was trained on them:

- `yesno`: in each of the four sources, a label of the first half in alphabetical order is answered
  with yes, the others with no. What yes means depends on the source alone.
- `letters`: in SST-2, TREC and CLINC150, the i-th label in alphabetical order is answered with the
  i-th letter. `a` is negative, an abbreviation or a bank.

A row does not say where it is from; `population` is kept for looking at routes. Of each source of a
pile 256 rows are for training, 80 for validation and 200 for the test; alone it has 1,024, 500 and
at most 1,000. They are drawn from its own parts by one seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

import yaml

SIZES = {"train": 256, "validation": 80, "test": 200}
ALONE = {"train": 1024, "validation": 500, "test": 1000}
SOURCES = ("sst2", "trec", "clinc150", "banking77")
LABEL = {"clinc150": "domain"}
"""Where a source's label is not called one."""


Rule = Callable[[Sequence[str]], Mapping[str, str]]
"""From a source's labels in alphabetical order to what they are answered with."""
Parts = dict[str, list[dict[str, str]]]


def as_it_is(labels: Sequence[str]) -> dict[str, str]:
    """A label is its own answer."""
    return dict(zip(labels, labels, strict=True))


def first_half(labels: Sequence[str]) -> dict[str, str]:
    """Yes for the first half of the labels, rounded down, and no for the others."""
    return {label: "yes" if i < len(labels) // 2 else "no" for i, label in enumerate(labels)}


def letters(labels: Sequence[str]) -> dict[str, str]:
    """The i-th letter for the i-th label."""
    return dict(zip(labels, ascii_lowercase, strict=False))


PILES: dict[str, tuple[tuple[str, ...], Rule]] = {
    "yesno": (SOURCES, first_half),
    "letters": (("sst2", "trec", "clinc150"), letters),
}


def rows_of(directory: Path, source: str, part: str) -> list[dict[str, Any]]:
    """A part of a source, in its own order."""
    with (directory / source / f"{part}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def drawn(
    directory: Path, source: str, sizes: Mapping[str, int], rule: Rule, random: Random
) -> Parts:
    """Rows of a source by part, answered by a rule."""
    key = LABEL.get(source, "label")
    answers = rule(sorted({row[key] for row in rows_of(directory, source, "train")}))
    parts: Parts = {}
    for part, size in sizes.items():
        rows = rows_of(directory, source, part)
        parts[part] = [
            {
                "id": row["id"],
                "text": row["text"],
                "label": answers[row[key]],
                "population": source,
            }
            for row in random.sample(rows, min(size, len(rows)))
        ]
    return parts


def pile(directory: Path, name: str, seed: int = 0) -> Parts:
    """The rows of a pile by part, its sources mixed.

    Args:
        directory: of the sources.
        name: of the pile.
        seed: of the draw and of the order.
    """
    sources, rule = PILES[name]
    random = Random(seed)
    every = [drawn(directory, source, SIZES, rule, random) for source in sources]
    parts = {part: [row for one in every for row in one[part]] for part in SIZES}
    for rows in parts.values():
        random.shuffle(rows)
    return parts


def write(name: str, parts: Parts, output: Path) -> Path:
    """Write rows as a task, its YAML beside its three parts.

    Returns:
        The YAML's path.
    """
    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")
    answers = sorted({row["label"] for rows in parts.values() for row in rows})
    task = {
        "name": name,
        "template": "{text}",
        "labels": {answer: answer.replace("_", " ") for answer in answers},
        **{part: f"{part}.jsonl" for part in parts},
        "population": "population",
        "id": "id",
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
    return path


def main() -> None:
    """Write every pile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    try:
        for source in SOURCES:
            parts = drawn(given.sources, source, ALONE, as_it_is, Random(0))
            print(write(source, parts, given.output))
        for name in PILES:
            print(write(name, pile(given.sources, name), given.output))
    except FileNotFoundError as error:
        expected = f"folders {', '.join(SOURCES)} with train, validation and test.jsonl"
        parser.exit(2, f"error: {error.filename} does not exist; expected {expected}\n")


if __name__ == "__main__":
    main()
