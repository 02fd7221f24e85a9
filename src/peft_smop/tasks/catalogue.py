"""The one table of tasks, and the way from a name to a task with its split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from peft_smop.errors import ConfigError, unknown
from peft_smop.tasks.holdout import Examples
from peft_smop.tasks.medley import MEDLEY, MEDLEY_ONE, ONE, load_medley
from peft_smop.tasks.splits import Split, make_split
from peft_smop.tasks.superglue import SUPERGLUE, load_superglue
from peft_smop.tasks.task import Task

_YAML_ENDINGS = (".yaml", ".yml")
_OWN = "or give the path of your own task's YAML"

Loaded = tuple[dict[str, Examples], dict[str, str]]


class TaskData(NamedTuple):
    """A task and its examples; `task, split = load_task("rte")` works too."""

    task: Task
    split: Split


@dataclass(frozen=True)
class Entry:
    """A task that comes with the package.

    Attributes:
        task: the task.
        source: where its rows come from, for people.
        presets: the presets of splits that fit it, the default first.
        load: (the folder given or None, seed) -> examples by part, and where each part came from.
    """

    task: Task
    source: str
    presets: tuple[str, ...]
    load: Callable[[Path | None, int], Loaded]


def _superglue(name: str, data: Path | None, seed: int) -> Loaded:
    return load_superglue(name, data)


CATALOGUE: Mapping[str, Entry] = {
    "medley": Entry(
        MEDLEY, "generated here, nothing to download", ("given", "three-way"), load_medley
    ),
    "medley-one": Entry(
        MEDLEY_ONE,
        "generated here, nothing to download",
        ("given", "three-way"),
        partial(load_medley, task=MEDLEY_ONE, populations=(ONE,)),
    ),
    **{
        name: Entry(
            entry.task,
            "SuperGLUE: --data DIR or the hub",
            ("paper", "three-way"),
            partial(_superglue, name),
        )
        for name, entry in SUPERGLUE.items()
    },
}


def task_names() -> tuple[str, ...]:
    """Return the names that `load_task` knows, beside the paths of your own YAML files."""
    return tuple(CATALOGUE)


def is_own(name_or_yaml: str | Path) -> bool:
    """Whether a name is the path of a task's own YAML."""
    return Path(name_or_yaml).suffix.lower() in _YAML_ENDINGS


def check_task(name: str | Path) -> None:
    """Refuse a name that is neither a task's of the catalogue nor a YAML's.

    Raises:
        ConfigError: with the nearest names.
    """
    if not is_own(name) and str(name) not in CATALOGUE:
        raise unknown("task", str(name), CATALOGUE, remedy=_OWN)


def define_task(name_or_yaml: str | Path) -> Task:
    """A task without its data.

    Raises:
        ConfigError: the name is unknown.
        DataError: naming the YAML and the line that cannot be used.
    """
    if is_own(name_or_yaml):
        from peft_smop.tasks.own import define_own

        return define_own(Path(name_or_yaml))
    check_task(name_or_yaml)
    return CATALOGUE[str(name_or_yaml)].task


def load_task(
    name_or_yaml: str | Path, *, data: Path | None = None, preset: str | None = None, seed: int = 0
) -> TaskData:
    """Load a task and divide its rows.

    Args:
        name_or_yaml: a name of the catalogue, or the path of your own task's YAML.
        data: the folder with the official SuperGLUE files; None reads them from the hub.
        preset: a name of `splits.PRESETS`; None takes the default of the task.
        seed: for the split; for the generated tasks also for the rows of train and validation.

    Raises:
        ConfigError: where name, preset, seed or data cannot be used, or the hub not be reached.
        DataError: naming the file and the line that cannot be used.
    """
    if is_own(name_or_yaml):
        if data is not None:
            raise ConfigError(
                f"data={str(data)!r} beside {name_or_yaml}, which names its own files"
            )
        from peft_smop.tasks.own import load_own  # its checks of types take a while to set up

        task, parts, sources = load_own(Path(name_or_yaml))
    else:
        name = str(name_or_yaml)
        check_task(name)
        task = CATALOGUE[name].task
        parts, sources = CATALOGUE[name].load(data, seed)
    split = make_split(parts, task.labels, preset=preset, seed=seed, sources=sources)
    return TaskData(task, split)
