"""Working on a sweep's runs: any number of processes, on any number of machines, over one store.

Nothing tells the processes what to do but the store itself: each takes the first run that is
neither finished nor being worked on. A lock dies with its owner, so that a run whose process was
killed is taken up by the next one that looks.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from traceback import format_exc
from typing import Any

from rich.console import Console

from peft_smop import errors
from peft_smop.errors import RunError, RunInUseError, SMoPError
from peft_smop.lab.run import run, run_packed
from peft_smop.lab.sweep import Job
from peft_smop.methods import can_pack
from peft_smop.results import (
    RunDirectory,
    RunResult,
    append_line,
    read_lines,
    read_object,
    write_json,
)

LOOK_AGAIN_SECONDS = 0.5
MOST_DEATHS = 3
"""How often a run may take its process with it, before it is left alone."""


class State(StrEnum):
    """Where a run of a sweep stands."""

    waiting = "waiting"
    running = "running"
    finished = "finished"
    failed = "failed"


@dataclass(frozen=True)
class Store:
    """The directory of a sweep: its runs, and a journal of what was begun and how it ended."""

    path: Path

    @property
    def journal(self) -> Path:
        """One line for every beginning and end of a training."""
        return self.path / "journal.jsonl"

    def run(self, job: Job) -> RunDirectory:
        """A job's directory."""
        return RunDirectory(self.path / "runs" / job.directory)

    def note(self, event: str, job: Job, sitting: str, **more: Any) -> None:
        """Add a line to the journal.

        Raises:
            RunError: it cannot be written.
        """
        append_line(
            self.journal,
            {
                "event": event,
                "run": job.directory,
                "sitting": sitting,
                "when": time.strftime("%Y-%m-%d %H:%M:%S"),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                **more,
            },
        )

    def events(self, sitting: str | None = None) -> list[dict[str, Any]]:
        """What the journal has of one sitting; None: of all."""
        if not self.journal.is_file():
            return []
        # a line that was torn, by a full disk or a crash, is nobody's
        lines = read_lines(self.journal, "a journal of runs", whole=False)
        return [line for line in lines if sitting is None or line.get("sitting") == sitting]

    def failures(self, sitting: str) -> dict[str, SMoPError]:
        """Why runs failed in this sitting, by their directories."""
        return {
            line["run"]: _as_error(str(line.get("kind")), str(line["reason"]))
            for line in self.events(sitting)
            if line["event"] == "failed"
        }

    def state(self, job: Job, failed: Container[str]) -> State:
        """Where a job stands.

        Args:
            job: one of the sweep's.
            failed: the directories of those that failed.
        """
        directory = self.run(job)
        if job.directory in failed:  # also a finished run that was refused: something was altered
            return State.failed
        if directory.is_finished:
            return State.finished
        return State.running if (directory.path / ".lock").exists() else State.waiting


def _as_error(kind: str, reason: str) -> SMoPError:
    """An error of another process."""
    found = vars(errors).get(kind)
    if isinstance(found, type) and issubclass(found, SMoPError):
        return found(reason)
    return RunError(reason)


def units(jobs: Sequence[Job], pack: int = 1) -> list[tuple[Job, ...]]:
    """What is worked on at once: one run, or several that share their passes.

    Args:
        jobs: a sweep.
        pack: how many runs may share a pass, where their methods can and they differ in nothing
            that a pass needs; see `fit_packed`.

    Returns:
        Every job once, in the order of the first of each unit.
    """
    alone = [(place, [job]) for place, job in enumerate(jobs) if pack == 1 or not _packs(job)]
    alike: dict[tuple[object, ...], list[tuple[int, Job]]] = {}
    for place, job in enumerate(jobs):
        if pack > 1 and _packs(job):
            alike.setdefault(_of_a_pass(job), []).append((place, job))
    for same in alike.values():
        for start in range(0, len(same), pack):
            part = same[start : start + pack]
            alone.append((part[0][0], [job for _, job in part]))
    return [tuple(unit) for _, unit in sorted(alone, key=lambda found: found[0])]


def _packs(job: Job) -> bool:
    return can_pack(job.spec.method) and not job.spec.training.keep_texts


def _of_a_pass(job: Job) -> tuple[object, ...]:
    """What runs that share a pass have in common."""
    spec, options = job.spec, job.spec.training
    data = (spec.task, spec.data, spec.preset, spec.model)
    return (*data, options.max_length, options.precision, spec.dropout,
            options.gradient_checkpointing)  # fmt: skip


def work(
    jobs: Sequence[Job],
    store: Store,
    sitting: str,
    *,
    pack: int = 1,
    console: Console | None = None,
    report_to: Sequence[str] = (),
) -> None:
    """Work until every job is finished or has failed, whoever does it.

    Args:
        jobs: in the order in which they are wanted.
        store: where their directories are.
        sitting: a name that all processes of one call share: what failed in it is not tried again.
        pack: as for `units`.
        console: where to say how it goes.
        report_to: as for `run`.
    """
    waiting = units(jobs, pack)
    while waiting:
        before = len(waiting)
        waiting = [
            unit
            for unit in waiting
            if not take(unit, store, sitting, console=console, report_to=report_to)
        ]
        if len(waiting) == before:  # others work on them; one of these may be killed
            time.sleep(LOOK_AGAIN_SECONDS)


def take(
    unit: Sequence[Job],
    store: Store,
    sitting: str,
    *,
    console: Console | None = None,
    report_to: Sequence[str] = (),
) -> bool:
    """Do a unit of work, unless another process does; whether nothing is left to do of it."""
    failed = store.failures(sitting)
    jobs = [job for job in unit if job.directory not in failed]
    begun: list[Job] = []

    def on_begin(place: int, resumed: bool) -> None:
        job = jobs[place]
        own = [e["event"] for e in store.events(sitting) if e["run"] == job.directory]
        ended = max((i for i, event in enumerate(own) if event != "started"), default=-1)
        deaths = own[ended + 1 :]
        if len(deaths) >= MOST_DEATHS:
            raise RunError(
                f"{store.run(job).path} ended its process {len(deaths)} times, as too much memory"
                " would; run it alone by smop train --resume to see why"
            )
        store.note("started", job, sitting, resumed=resumed)
        begun.append(job)

    def note_failed(job: Job, error: Exception, **more: Any) -> None:
        reason = str(error) if isinstance(error, SMoPError) else f"{type(error).__name__}: {error}"
        reason = reason.split("\n")[0] if more else reason
        with suppress(SMoPError):  # a full disk may be the very reason
            store.note("failed", job, sitting, kind=type(error).__name__, reason=reason, **more)

    places = [store.run(job).path for job in jobs]
    try:
        outcomes: Sequence[RunResult | SMoPError]
        if len(jobs) > 1:
            outcomes = run_packed(
                [job.spec for job in jobs],
                places,
                resume=True,
                console=console,
                titles=[job.name for job in jobs],
                report_to=report_to,
                on_begin=on_begin,
            )
        else:
            outcomes = [
                run(
                    job.spec,
                    place,
                    resume=place.is_dir(),
                    console=console,
                    title=job.name,
                    report_to=report_to,
                    on_begin=partial(on_begin, 0),
                )
                for job, place in zip(jobs, places, strict=True)
            ]
    except RunInUseError:
        return False
    except SMoPError as error:
        outcomes = [error] * len(jobs)
    except Exception as error:
        # a defect, of ours or of a library; it is kept for whoever mends it, and the rest go on
        for job in jobs:
            note_failed(job, error, traceback=format_exc())
        return True
    for job, outcome in zip(jobs, outcomes, strict=True):
        if isinstance(outcome, SMoPError):
            note_failed(job, outcome)
        elif job in begun:
            with suppress(SMoPError):
                store.note("finished", job, sitting)
    return True


def remember(store: Store, jobs: Sequence[Job]) -> None:
    """Write down which runs belong to the sweep.

    Raises:
        RunError: the place cannot be written to.
        CheckpointError: what is there is damaged.
    """
    path = store.path / "sweep.json"
    before = read_object(path, "a list of runs").get("runs", {}) if path.is_file() else {}
    now = {job.directory: job.name for job in jobs}
    write_json(path, {"runs": {**before, **now}})
