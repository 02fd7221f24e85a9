"""The generated tasks for the embedded model: they need no download, and are controls.

`medley` is the positive one, with nine sub-populations that contradict each other; `medley-one`,
the rows of the first of them alone, the negative one: there is nothing to choose a prompt by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from peft_smop.embedded.instructions import ANSWERS
from peft_smop.embedded.medley import LABELS, POPULATIONS, Population, medley_rows
from peft_smop.embedded.partition import Split as Part
from peft_smop.errors import ConfigError
from peft_smop.tasks.examples import Columns, to_examples
from peft_smop.tasks.holdout import Examples
from peft_smop.tasks.reading import Row
from peft_smop.tasks.task import Task

MEDLEY = Task(
    name="medley",
    template="{text}",
    labels=LABELS,
    verbalizers=LABELS,
    description="generated sentences of nine kinds, each needing one of six skills",
)

ONE = POPULATIONS[0]
MEDLEY_ONE = Task(
    name="medley-one",
    template="{text}",
    labels=ANSWERS[ONE.asked],
    verbalizers=ANSWERS[ONE.asked],
    description="the first of medley's nine kinds alone: nothing to route by",
)

SIZES: Mapping[Part, int] = {"train": 512, "validation": 256, "test": 1000}


def load_medley(
    data: Path | None = None,
    seed: int = 0,
    sizes: Mapping[Part, int] = SIZES,
    *,
    task: Task = MEDLEY,
    populations: Sequence[Population] = POPULATIONS,
) -> tuple[dict[str, Examples], dict[str, str]]:
    """Generate the three parts.

    Train and validation follow the seed, as they do where a tenth of train is held out; test is the
    same for every seed, so that scores of different seeds are scores on the same rows. No text is
    in two parts whatever the seeds, since the generator assigns texts to parts.

    Raises:
        ConfigError: where a folder of data is given.
    """
    if data is not None:
        raise ConfigError(f"data={str(data)!r}, but {task.name} is generated; leave it out")
    parts: dict[str, Examples] = {}
    sources: dict[str, str] = {}
    for part, count in sizes.items():
        rows_seed = 0 if part == "test" else seed
        sources[part] = f"{task.name}, {part}, {count} rows, seed {rows_seed}"
        rows = [
            Row(fields, sources[part], number, has_lines=False)
            for number, fields in enumerate(
                medley_rows(part, count, seed=rows_seed, populations=populations), start=1
            )
        ]
        parts[part] = to_examples(rows, task, Columns(id="id", population="population"))
    return parts, sources
