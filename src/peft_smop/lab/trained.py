"""Take up a trained adapter again: a run's directory, or an adapter's with what the run knew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import TaskType
from torch import nn

from peft_smop.errors import CheckpointError, ConfigError, RunError
from peft_smop.lab.prepare import load_task_of, put, training_examples
from peft_smop.lab.spec import RunSpec
from peft_smop.methods import MethodSpec, load_adapter, load_backbone, read_config
from peft_smop.results import RunDirectory
from peft_smop.scoring import Formulation
from peft_smop.tasks import CATALOGUE, Example, Task, load_task


@dataclass(frozen=True)
class Trained:
    """A trained adapter on its backbone, and the task it was trained for."""

    directory: RunDirectory
    """Where it was found; an adapter without its run has none of a run's other files."""
    spec: RunSpec
    task: Task
    model: nn.Module
    formulation: Formulation


@dataclass(frozen=True)
class PartOfTask:
    """Today's examples of a part of the task that something was trained for."""

    examples: Sequence[Example]
    train: Sequence[Example]
    """The examples that a run on today's data would learn from, whatever the part."""
    is_own: bool
    """False: the run recorded other rows in this part; some of these may have been trained on."""


def load_trained(
    path: Path, *, task: str | None = None, model: str | None = None, data: Path | None = None
) -> Trained:
    """Load what was trained.

    Args:
        path: a run's directory or an adapter's.
        task: the task, where `path` is an adapter's directory.
        model: the backbone; by default the one it was trained on.
        data: the directory of the task's files; by default the run's.

    Raises:
        SMoPError: something is missing, damaged, or does not fit; or `task` is not the run's.
    """
    directory = RunDirectory(path)
    around = RunDirectory(path.parent)
    if path.resolve() == around.adapter.resolve() and around.spec.is_file():
        directory = around  # the adapter within its run, which knows the rest
    if directory.spec.is_file():
        spec = RunSpec.begun(directory.spec)
        adapter = directory.adapter
        if not directory.is_finished:
            raise directory.unfinished()
        if spec.method.name == "told":
            raise ConfigError(
                f"{path}: method 'told' is a control, scored where it is trained; its score is in"
                f" {directory.result}"
            )
        if task is not None and task != spec.task:
            raise ConfigError(
                f"--task {task} is not the task of the run in {path}, {spec.task}; leave --task out"
            )
        definition = _read_task(directory)
    else:
        adapter = path
        config = read_config(adapter)
        if task is None:
            raise ConfigError(
                f"{path} is an adapter without its run, which would know the task; give --task with"
                f" a task's YAML, or one of {', '.join(CATALOGUE)}"
            )
        spec = RunSpec(
            task=task,
            model=model or config.base_model_name_or_path or "",
            method=MethodSpec(num_virtual_tokens=getattr(config, "num_virtual_tokens", 5)),
        )
        own = CATALOGUE.get(task)
        definition = load_task(task, data=data)[0] if own is None else own.task
    spec = spec.model_copy(
        update={
            key: value for key, value in (("model", model), ("data", data)) if value is not None
        }
    )
    # bf16 only where this device is fast at it, whatever the run's was
    dtype = "fp32" if spec.loaded_in == "fp32" else spec.precision
    if spec.method.name == "full":
        whole = load_backbone(str(adapter), labels=len(definition.labels), dtype=dtype)
        put_to = put(definition, whole, spec)
        directory.check_unaltered()
        return Trained(directory, spec, definition, whole.model.eval(), put_to)
    config = read_config(adapter)
    backbone = load_backbone(
        spec.model,
        labels=len(definition.labels),
        dtype=dtype,
        task_type=TaskType(config.task_type).value if config.task_type else None,
    )
    adapted = load_adapter(backbone.model, adapter).eval()
    if directory.spec.is_file():
        directory.check_unaltered()  # what is damaged has been told already
    return Trained(directory, spec, definition, adapted, put(definition, backbone, spec))


def part_of_task(trained: Trained, part: str, *, seed: int | None = None) -> PartOfTask:
    """Load the examples of a part, and hold them against what was trained.

    Args:
        trained: what was trained.
        part: train, validation or test.
        seed: of the split; by default the run's.

    Raises:
        RunError: the task's template, labels or verbalizers have changed since.
        SMoPError: the data cannot be read, or the run's record of them.
    """
    spec = trained.spec if seed is None else trained.spec.model_copy(update={"seed": seed})
    today, split = load_task_of(spec)
    if today != trained.task:
        raise RunError(
            f"the task {spec.task!r} is not the one that was trained: its template, labels or"
            " verbalizers have changed since"
        )
    recorded = _recorded_hash(trained.directory, part)
    now = split.record()["parts"][part]["sha256"]
    return PartOfTask(
        getattr(split, part),
        training_examples(split, spec),
        is_own=recorded is None or recorded == now,
    )


def _recorded_hash(directory: RunDirectory, part: str) -> str | None:
    """The hash of a part's rows when the run was started; None: there is no record."""
    if not directory.split.is_file():
        return None
    try:
        return str(directory.read_split()["parts"][part]["sha256"])
    except (TypeError, KeyError) as error:
        raise CheckpointError(
            f"{directory.split} cannot be read as a split: no {error} where one should be"
        ) from error


def _read_task(directory: RunDirectory) -> Task:
    try:
        content = directory.read_task().items()
        fields: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in content}
        return Task(**fields)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{directory.task} cannot be read as a task: {error}") from error
