"""Where an adapter is, and what is known of it: a run's directory, an adapter's, or one alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from peft_smop.errors import CheckpointError, ConfigError
from peft_smop.methods import read_config
from peft_smop.predictor.beside import NAME, Beside, is_control, located
from peft_smop.results import RunDirectory
from peft_smop.tasks import CATALOGUE, define_task

Source: TypeAlias = str | Path
"""A run's directory, or an adapter's."""


def named_by_directory(sources: Iterable[Source]) -> dict[str, Source]:
    """Sources by the names of their directories; an adapter within a run by the run's."""
    named: dict[str, Source] = {}
    for source in sources:
        path = Path(source).resolve()
        name = path.parent.name if path.name == "adapter" else path.name
        if name in named:
            raise ConfigError(
                f"{named[name]} and {source} are both called {name}; give them names:"
                " NAME=DIRECTORY"
            )
        named[name] = source
    return named


def find(path: Path, model: str | None, task: str | Path | None) -> tuple[Path, Beside]:
    """An adapter's directory, and what is known of it.

    Raises:
        CheckpointError: there is no finished adapter.
        ConfigError: its task is not known.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory; expected a run's or a saved adapter's")
    is_run = (path / "spec.yaml").is_file()
    adapter = path / "adapter" if is_run else path
    run = path if is_run else path.parent if path.name == "adapter" else None
    if is_run and not ((path / "result.json").is_file() and adapter.is_dir()):
        raise RunDirectory(path).unfinished()
    if run is not None and (run / "result.json").is_file():
        RunDirectory(run).check_unaltered()
    beside = Beside.read(adapter, run=run)
    if run is not None and is_control(run):
        raise ConfigError(
            f"{path}: method 'told' is a control, scored where it is trained; its score is in"
            f" {run / 'result.json'}"
        )
    if beside is None:
        config = read_config(adapter)
        if task is None:
            raise ConfigError(
                f"{path} is an adapter without its task ({NAME}); give --task with a task's YAML,"
                f" or one of {', '.join(CATALOGUE)}"
            )
        beside = Beside(
            define_task(task),
            located(config.base_model_name_or_path or ""),
            prompt_length=getattr(config, "num_virtual_tokens", 0),
        )
    elif task is not None and define_task(task) != beside.task:
        raise ConfigError(
            f"--task {task} is not the task of {path}, {beside.task.name}; leave --task out"
        )
    if model is not None:
        beside = Beside(
            beside.task, located(model), beside.max_length, beside.precision, beside.prompt_length
        )
    return adapter, beside
