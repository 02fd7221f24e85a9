"""Working on a sweep's runs: any number of processes, on any number of machines, over one store.

Nothing tells the processes what to do but the store itself: each takes the first run that is
neither finished nor being worked on. A lock dies with its owner, so that a run whose process was
killed is taken up by the next one that looks.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from traceback import format_exc
from typing import Any

from rich.console import Console

from peft_smop.errors import RunError, RunInUseError, SMoPError
from peft_smop.lab.run import run
from peft_smop.lab.sweep import Job
from peft_smop.results import RunDirectory, append_line, read_lines, read_object, write_json

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

    def events(self, sitting: str) -> list[dict[str, Any]]:
        """What the journal has of one sitting."""
        if not self.journal.is_file():
            return []
        # a line that was torn, by a full disk or a crash, is nobody's
        lines = read_lines(self.journal, "a journal of runs", whole=False)
        return [line for line in lines if line.get("sitting") == sitting]

    def failure(self, job: Job, sitting: str) -> str | None:
        """Why a job failed in this sitting; None: it did not."""
        for line in self.events(sitting):
            if line["event"] == "failed" and line["run"] == job.directory:
                return str(line["reason"])
        return None

    def state(self, job: Job, failed: set[str]) -> State:
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


def work(
    jobs: Sequence[Job],
    store: Store,
    sitting: str,
    *,
    console: Console | None = None,
    report_to: Sequence[str] = (),
) -> None:
    """Work until every job is finished or has failed, whoever does it.

    Args:
        jobs: in the order in which they are wanted.
        store: where their directories are.
        sitting: a name that all processes of one call share: what failed in it is not tried again.
        console: where to say how it goes.
        report_to: as for `run`.
    """
    waiting = list(jobs)
    while waiting:
        before = len(waiting)
        waiting = [job for job in waiting if not _take(job, store, sitting, console, report_to)]
        if len(waiting) == before:  # others work on them; one of these may be killed
            time.sleep(LOOK_AGAIN_SECONDS)


def _take(
    job: Job,
    store: Store,
    sitting: str,
    console: Console | None,
    report_to: Sequence[str],
) -> bool:
    """Do a job, unless another process does; whether there is nothing left to do of it."""
    directory = store.run(job)
    if store.failure(job, sitting) is not None:
        return True
    begun = False

    def on_begin(resumed: bool) -> None:
        nonlocal begun
        own = [e["event"] for e in store.events(sitting) if e["run"] == job.directory]
        ended = max((i for i, event in enumerate(own) if event != "started"), default=-1)
        deaths = own[ended + 1 :]
        if len(deaths) >= MOST_DEATHS:
            raise RunError(
                f"{directory.path} ended its process {len(deaths)} times, as too much memory would;"
                " run it alone by smop train --resume to see why"
            )
        store.note("started", job, sitting, resumed=resumed)
        begun = True

    try:
        run(
            job.spec,
            directory.path,
            resume=directory.path.is_dir(),
            console=console,
            title=job.name,
            report_to=report_to,
            on_begin=on_begin,
        )
    except RunInUseError:
        return False
    except SMoPError as error:
        with suppress(SMoPError):  # a full disk may be the very reason
            store.note("failed", job, sitting, reason=str(error))
        return True
    except Exception as error:
        # a defect, of ours or of a library; it is kept for whoever mends it, and the rest go on
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        with suppress(SMoPError):
            store.note("failed", job, sitting, reason=reason, traceback=format_exc())
        return True
    if begun:
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
