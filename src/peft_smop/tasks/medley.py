"""The generated task for the embedded model: needs no download and proves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peft_smop.embedded.medley import LABELS, medley_rows
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

SIZES: Mapping[Part, int] = {"train": 512, "validation": 256, "test": 1000}


def load_medley(
    data: Path | None = None, seed: int = 0, sizes: Mapping[Part, int] = SIZES
) -> tuple[dict[str, Examples], dict[str, str]]:
    """Generate the three parts.

    Train and validation follow the seed, as they do where a tenth of train is held out; test is the
    same for every seed, so that scores of different seeds are scores on the same rows. No text is
    in two parts whatever the seeds, since the generator assigns texts to parts.

    Raises:
        ConfigError: where a folder of data is given.
    """
    if data is not None:
        raise ConfigError(f"data={str(data)!r}, but medley is generated; leave it out")
    parts: dict[str, Examples] = {}
    sources: dict[str, str] = {}
    for part, count in sizes.items():
        rows_seed = 0 if part == "test" else seed
        sources[part] = f"medley, {part}, {count} rows, seed {rows_seed}"
        rows = [
            Row(fields, sources[part], number, has_lines=False)
            for number, fields in enumerate(medley_rows(part, count, seed=rows_seed), start=1)
        ]
        parts[part] = to_examples(rows, MEDLEY, Columns(id="id", population="population"))
    return parts, sources
