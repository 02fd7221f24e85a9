"""Runs on disk. A result appears whole or not at all; a finished one is never overwritten unasked.

RUN/spec.yaml           what was asked for
RUN/task.json           template, labels and verbalizers
RUN/split.json          which examples were in which part, by hash
RUN/metrics.jsonl       one line for every training and validation figure
RUN/checkpoints/        while it runs, for --resume
RUN/adapter/            the best state, as PEFT saves it
RUN/predictions.jsonl   the test examples: label, prediction, log-probabilities, prompt
RUN/result.json         written last: its presence means the run is finished
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_smop.errors import CheckpointError, ConfigError, RunError


def write_whole(path: Path, text: str) -> None:
    """Write a file so that no reader, and no crash, ever sees half of it.

    Raises:
        RunError: the place cannot be written to.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON for people and programs, whole."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, whole."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


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
    def result(self) -> Path:
        """The result; there when the run is finished."""
        return self.path / "result.json"

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return self.result.is_file()

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to use the directory in a way that could lose something.

        Raises:
            ConfigError: both ways of using a used directory were asked for.
            RunError: the directory is in use and neither was, or it holds something else.
        """
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite exclude each other; give one")
        nearest = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not nearest.is_dir():
            raise RunError(f"{nearest} is a file; expected a directory for the run")
        if not os.access(nearest, os.W_OK):
            raise RunError(f"{nearest} cannot be written to; give --output another directory")
        if not self.path.is_dir() or not any(self.path.iterdir()):
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

    def clear(self) -> None:
        """Delete what an earlier run wrote, and nothing else.

        The result goes first, as it says that the rest is there; the specification last, as it says
        that the directory is a run's.
        """
        for path in (
            self.result,
            self.adapter,
            self.checkpoints,
            self.predictions,
            self.metrics,
            self.split,
            self.task,
            self.spec,
        ):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def read_result(self) -> dict[str, Any]:
        """The result of a finished run.

        Raises:
            CheckpointError: the run is not finished.
        """
        if not self.is_finished:
            raise CheckpointError(
                f"{self.result} does not exist; the run is not finished, use smop train --resume"
            )
        return json.loads(self.result.read_text(encoding="utf-8"))
