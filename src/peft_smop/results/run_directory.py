"""Runs on disk. A result appears whole or not at all; a finished one is never overwritten unasked.

RUN/spec.yaml           what was asked for
RUN/task.json           template, labels and verbalizers
RUN/split.json          which examples were in which part, by hash
RUN/metrics.jsonl       one line for every training and validation figure; grows while it runs
RUN/checkpoints/        for --resume
RUN/adapter/            the best state, as PEFT saves it
RUN/predictions.jsonl   the test examples: label, prediction, probabilities, prompt
RUN/failure.json        why it stopped, until it is gone on with
RUN/result.json         written last, with the hashes of the others: the run is finished
RUN/.lock               while a process works on it
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_smop.errors import CheckpointError, ConfigError, RunError, shortened
from peft_smop.results.files import DRAFT, read_lines, read_object, sha256_of, writing
from peft_smop.results.lock import LOCK, locked
from peft_smop.results.schema import RunResult

NOT_HASHED = "README.md"
"""A model card is for people, who may well write in it."""


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run."""

    path: Path

    @property
    def spec(self) -> Path:
        """What was asked for."""
        return self.path / "spec.yaml"

    @property
    def task(self) -> Path:
        """The task's definition, so that predicting needs no data."""
        return self.path / "task.json"

    @property
    def split(self) -> Path:
        """The parts, by hash."""
        return self.path / "split.json"

    @property
    def metrics(self) -> Path:
        """The history."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What an interrupted run goes on from."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter."""
        return self.path / "adapter"

    @property
    def predictions(self) -> Path:
        """The test predictions."""
        return self.path / "predictions.jsonl"

    @property
    def failure(self) -> Path:
        """Why the run stopped."""
        return self.path / "failure.json"

    @property
    def result(self) -> Path:
        """The result; there when the run is finished."""
        return self.path / "result.json"

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return self.result.is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one to work on the run; what a killed owner had half written is deleted.

        Raises:
            RunInUseError: another process works on it.
            RunError: the directory cannot be made or locked.
        """
        with locked(self.path):
            for path in self._left_over():
                path.unlink(missing_ok=True)
            yield

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to use the directory in a way that could lose something.

        Raises:
            ConfigError: both ways of using a used directory were asked for.
            RunError: the directory is in use and neither was, or it holds something else.
        """
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite exclude each other; give one")
        with writing(self.path):
            nearest = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
            if not nearest.is_dir():
                raise RunError(f"{nearest} is a file; expected a directory for the run")
            if not os.access(nearest, os.W_OK):
                raise RunError(f"{nearest} cannot be written to; give --output another directory")
            if not self.path.is_dir() or not self._holds_anything():
                return
        if not self.spec.is_file():
            raise RunError(
                f"{self.path} is not empty and holds no run; give --output another directory"
            )
        if not resume and not overwrite:
            state = "a finished run" if self.is_finished else "an unfinished run"
            remedy = "" if self.is_finished else "--resume to go on with it, "
            raise RunError(
                f"{self.path} already holds {state}; use {remedy}--overwrite to start again,"
                " or another --output"
            )

    @property
    def failed_at_once(self) -> bool:
        """Whether a run stopped with an error before anything was trained: nothing can be lost."""
        said = {path.name for path in (self.spec, self.task, self.split)}
        return self.failure.is_file() and not self._beside({LOCK, self.failure.name, *said})

    def _holds_anything(self) -> bool:
        """Whether there is more than a run leaves that was stopped before its first step."""
        return self._beside({LOCK, self.failure.name}) and not self.failed_at_once

    def _beside(self, names: Container[str]) -> bool:
        """Whether there are other files than of these names, and what a killed owner left."""
        left_over = set(self._left_over())
        return any(path.name not in names and path not in left_over for path in self.path.iterdir())

    def _left_over(self) -> list[Path]:
        return [path for path in self.path.glob(f".*{DRAFT}") if path.is_file()]

    def clear(self) -> None:
        """Delete what an earlier run wrote, and nothing else.

        The result goes first, as it says that the rest is there; the specification last, as it says
        that the directory is a run's.

        Raises:
            RunError: something cannot be deleted.
        """
        for path in (
            self.result,
            self.failure,
            self.adapter,
            self.checkpoints,
            self.predictions,
            self.metrics,
            self.split,
            self.task,
            self.spec,
        ):
            with writing(path):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of every file that a result stands on, by its path in the directory."""
        named = (self.spec, self.task, self.split, self.metrics, self.predictions)
        adapter = [p for p in sorted(self.adapter.rglob("*")) if p.is_file()]
        return {
            path.relative_to(self.path).as_posix(): sha256_of(path)
            for path in (*named, *adapter)
            if path.name != NOT_HASHED
        }

    def unfinished(self) -> CheckpointError:
        """What to say where a finished run is needed, and this is not one."""
        said = f"the run in {self.path} is not finished"
        remedy, reason = "go on with it by smop train --resume", None
        with suppress(CheckpointError):
            reason = read_object(self.failure, "why a run stopped").get("reason")
        if not isinstance(reason, str) or not reason.strip():
            return CheckpointError(f"{said}; {remedy}")
        if self.failed_at_once:
            remedy = "nothing was trained yet, so begin it anew"
        remedy = "" if "--resume" in reason else f"; {remedy}"
        return CheckpointError(f"{said}: {shortened(reason)}{remedy}")

    def read_result(self) -> RunResult:
        """The result of a finished run, every file of which is as the run wrote it.

        Raises:
            CheckpointError: the run is not finished, or a file is missing, damaged or altered.
        """
        if not self.is_finished:
            raise self.unfinished()
        result = RunResult.load(self.result)
        for name, recorded in result.files.items():
            path = self.path / name
            if not path.is_file():
                raise CheckpointError(
                    f"{path} is missing, on which {self.result} stands; restore it, or delete"
                    f" {self.path} and run it again"
                )
            if sha256_of(path) != recorded:
                raise CheckpointError(
                    f"{path} was altered since the run finished: {self.result} has another SHA-256"
                    f" of it; restore it, or delete {self.path} and run it again"
                )
        return result

    def check_unaltered(self) -> None:
        """Refuse a run that is not as it was written, as far as that can be known.

        The results of the first format have no hashes. Their scores are not believed, but what was
        trained may be taken up, as what it answers is seen then.

        Raises:
            CheckpointError: a file of the run is missing, damaged or altered.
        """
        if "format" in read_object(self.result, "a run's result"):
            self.read_result()

    def read_task(self) -> dict[str, Any]:
        """The task's definition.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        return read_object(self.task, "a task")

    def read_split(self) -> dict[str, Any]:
        """The record of the split.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        return read_object(self.split, "a split")

    def read_predictions(self) -> list[dict[str, Any]]:
        """The test predictions.

        Raises:
            CheckpointError: they are missing or damaged.
        """
        return read_lines(self.predictions, "predictions")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The history.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        return read_lines(self.metrics, "metrics")
