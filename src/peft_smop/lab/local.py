"""The local engine: worker processes over one store, and what is seen of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from statistics import mean

import torch
from rich.console import Console

from peft_smop.errors import RunError, SMoPError
from peft_smop.lab.sweep import Job
from peft_smop.lab.working import MOST_DEATHS, State, Store, remember, work
from peft_smop.quiet import quiet_libraries
from peft_smop.results import RunResult

LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Standing:
    """How far a sweep is."""

    jobs: Sequence[Job]
    states: dict[str, State]
    """By the runs' directories."""
    steps: dict[str, tuple[int, float | None]]
    """Of those that run: the newest step in their metrics, and the newest validation score."""
    seconds_left: float | None
    """None: no run has finished yet by which to tell."""

    def count(self, state: State) -> int:
        """How many runs are in a state."""
        return sum(found is state for found in self.states.values())


def standing(jobs: Sequence[Job], store: Store, *, sitting: str = "", workers: int = 1) -> Standing:
    """Look at a store: which of the jobs are done, and how long the others may take."""
    failed = store.failures(sitting)
    states = {job.directory: store.state(job, failed) for job in jobs}
    steps: dict[str, tuple[int, float | None]] = {}
    paces, left = [], 0
    for job in jobs:
        planned = job.spec.training.max_steps or 1
        state, directory = states[job.directory], store.run(job)
        if state is State.finished:
            try:
                told = RunResult.load(directory.result).training
            except SMoPError:
                continue  # whoever reads the result says so
            if not told.resumed:
                paces.append(told.seconds / (planned if job.spec.training.max_steps else 1))
            continue
        if state is State.failed:
            continue
        left += planned
        if state is State.running:
            steps[job.directory] = _newest(store, job)
            left -= min(steps[job.directory][0], planned) if planned > 1 else 0
    seconds_left = mean(paces) * left / max(1, min(workers, left)) if paces and left else None
    return Standing(jobs, states, steps, 0.0 if not left else seconds_left)


def _newest(store: Store, job: Job) -> tuple[int, float | None]:
    """The newest figures of a run that may be writing at this moment."""
    try:
        entries = store.run(job).read_metrics()
    except SMoPError:
        return 0, None
    scores = [e["eval_score"] for e in entries if "eval_score" in e]
    return max((int(e.get("step", 0)) for e in entries), default=0), scores[-1] if scores else None


def run_locally(
    jobs: Sequence[Job],
    store: Store,
    *,
    workers: int = 1,
    pack: int = 1,
    console: Console | None = None,
    report_to: Sequence[str] = (),
    on_look: Callable[[Standing], None] | None = None,
) -> dict[str, SMoPError]:
    """Run what is not finished in the store, in so many processes.

    Args:
        jobs: the sweep.
        store: its directory; other calls, here or elsewhere, may work on it too.
        workers: processes; one: this one.
        pack: how many runs may share a pass, as for `units`.
        console: where this process says how its own runs go.
        report_to: as for `run`.
        on_look: told every half second how far the sweep is, where there are several processes.

    Returns:
        By their directories, why those failed that did; the rest are finished.

    Raises:
        RunError: the store cannot be written to.
        CheckpointError: its records are damaged.
    """
    remember(store, jobs)
    sitting = new_sitting()
    if workers == 1:
        work(jobs, store, sitting, pack=pack, console=console, report_to=report_to)
    else:
        tell = (
            (lambda: on_look(standing(jobs, store, sitting=sitting, workers=workers)))
            if on_look
            else None
        )
        _in_processes(jobs, store, sitting, workers, pack, report_to, tell)
    return unfinished(jobs, store, sitting)


def new_sitting() -> str:
    """A name for one call of an engine, whose failures are its own."""
    return uuid.uuid4().hex[:12]


def unfinished(jobs: Sequence[Job], store: Store, sitting: str) -> dict[str, SMoPError]:
    """Why jobs are not finished after a sitting, by their directories."""
    failed = store.failures(sitting)
    return {
        job.directory: failed.get(job.directory, RunError("its process ended"))
        for job in jobs
        if job.directory in failed or not store.run(job).is_finished
    }


def _in_processes(
    jobs: Sequence[Job],
    store: Store,
    sitting: str,
    workers: int,
    pack: int,
    report_to: Sequence[str],
    tell: Callable[[], None] | None,
) -> None:
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // workers)

    def start() -> BaseProcess:
        process = context.Process(
            target=_worker, args=(list(jobs), store, sitting, pack, tuple(report_to), threads)
        )
        process.start()
        return process

    crew = [start() for _ in range(workers)]
    replaced = 0
    try:
        while any(process.is_alive() for process in crew):
            time.sleep(LOOK_SECONDS)
            if tell is not None:
                tell()
            for place, process in enumerate(crew):
                # a run that kills its process is left alone in the end, so that this ends too
                if process.exitcode not in (None, 0) and replaced < MOST_DEATHS * len(jobs):
                    crew[place] = start()
                    replaced += 1
    finally:
        for process in crew:
            process.terminate()
            process.join()


def _worker(
    jobs: list[Job],
    store: Store,
    sitting: str,
    pack: int,
    report_to: tuple[str, ...],
    threads: int,
) -> None:
    """One process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us ends us
    quiet_libraries()
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    work(jobs, store, sitting, pack=pack, report_to=report_to)
