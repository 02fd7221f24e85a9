"""How a run begins: in an empty directory, where it stopped, or where it had finished."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from peft_smop.errors import CheckpointError, ConfigError, RunError
from peft_smop.lab.prepare import Prepared, load_task_of, prepare
from peft_smop.lab.spec import HISTORY, RunSpec
from peft_smop.results import RunDirectory, RunResult, write_json
from peft_smop.tasks import Split, Task
from peft_smop.tasks.reading import shown
from peft_smop.training import ProgressBar, Training, last_complete_checkpoint

LENGTHS = ("max_steps", "epochs")
"""The options of training that say how long it is; a finished run may be given more of them."""


@dataclass(frozen=True)
class Begun:
    """A run whose directory is written and whose training may begin."""

    spec: RunSpec
    prepared: Prepared
    directory: RunDirectory
    resumed: bool
    started: float

    def training(
        self, title: str, progress: Progress, *, resume: bool, report_to: Sequence[str] = ()
    ) -> Training:
        """What the fit is given."""
        prepared, spec = self.prepared, self.spec
        return Training(
            model=prepared.model,
            formulation=prepared.formulation,
            train=prepared.train,
            validation=prepared.split.validation,
            options=spec.training,
            seed=spec.seed,
            output=self.directory.checkpoints,
            resume=resume,
            callbacks=[ProgressBar(progress, f"{prepared.task.name} {title} seed {spec.seed}")],
            metrics=self.directory.metrics,
            report_to=report_to,
            title=f"{prepared.task.name} {title} seed {spec.seed}",
        )


def begin(spec: RunSpec, directory: RunDirectory, *, resume: bool, overwrite: bool) -> Begun:
    """Prepare a run in a directory that is locked, and write down what it is.

    Raises:
        SMoPError: the specification, the data, the model or the directory are not usable.
    """
    directory.check(resume=resume, overwrite=overwrite)
    resume = resume and not directory.failed_at_once
    spec = spec.resolved()
    if resume and directory.spec.is_file():
        spec = _taken_up(spec, directory)
    prepared = prepare(spec)
    exact = prepared.backbone.model.dtype == torch.float32
    loaded = {"loaded_in": "fp32" if exact else "bf16", "pooled": prepared.pooling}
    spec = spec.model_copy(update=loaded)
    # only now: an earlier result outlives a mistake in the new run's data or options
    if overwrite:
        directory.clear()
    if resume:
        check_same_data(prepared.task, prepared.split, directory)
    directory.result.unlink(missing_ok=True)  # there is one where a finished run is trained on
    spec.save(directory.spec)
    write_json(directory.task, asdict(prepared.task))
    write_json(directory.split, prepared.split.record())
    directory.failure.unlink(missing_ok=True)
    resumed = resume and last_complete_checkpoint(directory.checkpoints) is not None
    return Begun(spec, prepared, directory, resumed, time.monotonic())


def finished(spec: RunSpec, directory: RunDirectory) -> RunResult | None:
    """A finished run's result, if it is the one that is asked for.

    Raises:
        ConfigError: it is another one.
        RunError: today's data are not those that it was trained on.
        CheckpointError: it is not as it was written.
    """
    if not directory.is_finished:
        return None
    before, spec = RunSpec.begun(directory.spec), spec.resolved()
    result = directory.read_result()
    if _lengthened(before, spec):
        return None
    check_same(before, spec, directory.spec)
    check_same_data(*load_task_of(spec), directory)
    return result


def check_same(before: RunSpec, now: RunSpec, place: Path) -> None:
    """Refuse to go on with other options.

    Raises:
        ConfigError: one is another.
    """
    old, new = (_content(spec) for spec in (before, now))
    changed = [key for key in new if new[key] != old[key]]
    if changed:
        key = changed[0]
        was, wanted = old[key], new[key]
        if isinstance(was, dict) and isinstance(wanted, dict):
            others = [k for k in wanted if wanted[k] != was.get(k)]
            key = min(others, key=LENGTHS.__contains__)  # more steps alone may be asked for
            was, wanted = was.get(key), wanted[key]
            if was is None and key in ("learning_rate", "dropout"):
                raise ConfigError(
                    f"{place} does not say its {key}: it was started by a version of which a recipe"
                    " may have meant another; go on with that version, or use --overwrite"
                )
        raise ConfigError(
            f"{place} was started with {key}={shown(was)}, not {shown(wanted)};"
            " resume with the options it was started with, or use --overwrite"
        )


def check_same_data(task: Task, split: Split, directory: RunDirectory) -> None:
    """Refuse to go on with other rows: some of today's test rows may have been trained on.

    Raises:
        RunError: they are others.
        CheckpointError: what is written of them is damaged.
    """
    for path, read, content in (
        (directory.task, directory.read_task, asdict(task)),
        (directory.split, directory.read_split, split.record()),
    ):
        if path.is_file() and read() != json.loads(json.dumps(content)):
            raise RunError(
                f"the task's data are not those in {path}, with which the run was started;"
                " restore them, or use --overwrite"
            )


def _taken_up(spec: RunSpec, directory: RunDirectory) -> RunSpec:
    """The specification with which a run goes on."""
    before = RunSpec.begun(directory.spec)
    if not directory.is_finished or not _lengthened(before, spec):
        check_same(before, spec, directory.spec)
        return spec.model_copy(update={key: getattr(before, key) for key in HISTORY})
    training = directory.read_result().training
    if training.stopped_early:
        raise ConfigError(
            f"{directory.path} stopped early, as its validation score had not risen for"
            f" {spec.training.patience} evaluations: more steps would not be taken; give more"
            " --patience and --overwrite"
        )
    if last_complete_checkpoint(directory.checkpoints) is None:
        raise CheckpointError(
            f"{directory.checkpoints} holds no whole checkpoint, which training on would go on"
            " from; start again with --overwrite"
        )
    continued_at = (*before.continued_at, training.steps)
    kept = {key: getattr(before, key) for key in HISTORY}
    return spec.model_copy(update=kept | {"continued_at": continued_at})


def _lengthened(before: RunSpec, now: RunSpec) -> bool:
    """Whether now is the same run with more steps."""
    old, new = before.training, now.training
    same = now.model_copy(
        update={"training": new.model_copy(update={k: getattr(old, k) for k in LENGTHS})}
    )
    if _content(before) != _content(same):
        return False
    if old.max_steps is None and new.max_steps is None:
        return new.epochs > old.epochs
    if old.max_steps is None or new.max_steps is None:
        return False  # which is more depends on the number of rows
    return new.max_steps > old.max_steps


def _content(spec: RunSpec) -> dict[str, Any]:
    """What was asked for, in JSON's terms; not how the run came there."""
    return spec.model_dump(mode="json", exclude=HISTORY)
