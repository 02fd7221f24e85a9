"""Take up a trained adapter again: a run's directory, or an adapter's with what the run knew."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import TaskType
from torch import nn

from peft_smop.errors import CheckpointError, ConfigError
from peft_smop.lab.run import put
from peft_smop.lab.spec import RunSpec
from peft_smop.lab.store import RunDirectory
from peft_smop.methods import MethodSpec, load_adapter, load_backbone, read_config
from peft_smop.scoring import Formulation
from peft_smop.tasks import CATALOGUE, Task


@dataclass(frozen=True)
class Trained:
    """A trained adapter on its backbone, and the task it was trained for."""

    spec: RunSpec
    task: Task
    model: nn.Module
    formulation: Formulation


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
        SMoPError: something is missing, damaged, or does not fit.
    """
    directory = RunDirectory(path)
    if directory.spec.is_file():
        spec = RunSpec.load(directory.spec)
        adapter = directory.adapter
        if not directory.is_finished or not adapter.is_dir():
            raise CheckpointError(
                f"the run in {path} is not finished; go on with it by smop train --resume"
            )
        if spec.method.name == "told":
            raise ConfigError(
                f"{path}: method 'told' is a control, scored where it is trained; its score is in"
                f" {directory.result}"
            )
        definition = _read_task(directory.task)
    else:
        adapter = path
        config = read_config(adapter)
        if task is None or task not in CATALOGUE:
            raise ConfigError(
                f"{path} is an adapter without its run, which would know the task; give --task with"
                f" one of {', '.join(CATALOGUE)}"
            )
        spec = RunSpec(
            task=task,
            model=model or config.base_model_name_or_path or "",
            method=MethodSpec(num_virtual_tokens=getattr(config, "num_virtual_tokens", 5)),
        )
        definition = CATALOGUE[task].task
    spec = spec.model_copy(
        update={
            key: value for key, value in (("model", model), ("data", data)) if value is not None
        }
    )
    if spec.method.name == "full":
        whole = load_backbone(
            str(adapter), labels=len(definition.labels), dtype=spec.training.precision
        )
        return Trained(spec, definition, whole.model.eval(), put(definition, whole, spec))
    config = read_config(adapter)
    backbone = load_backbone(
        spec.model,
        labels=len(definition.labels),
        dtype=spec.training.precision,
        task_type=TaskType(config.task_type).value if config.task_type else None,
    )
    adapted = load_adapter(backbone.model, adapter).eval()
    return Trained(spec, definition, adapted, put(definition, backbone, spec))


def _read_task(path: Path) -> Task:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        fields: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return Task(**fields)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as a task: {error}") from error
