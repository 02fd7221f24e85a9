"""One run, or several in one pass: from specifications to trained, saved, evaluated adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from rich.console import Console

from peft_smop.errors import RunError, RunInUseError, SMoPError
from peft_smop.lab.beginning import Begun, begin, finished
from peft_smop.lab.ending import finish
from peft_smop.lab.prepare import prepare
from peft_smop.lab.spec import RunSpec
from peft_smop.results import RunDirectory, RunResult, write_json
from peft_smop.training import (
    Fit,
    bars,
    fit,
    fit_packed,
    last_complete_checkpoint,
    processes,
    share_backbone,
)


def run(
    spec: RunSpec,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    title: str | None = None,
    report_to: Sequence[str] = (),
    on_begin: Callable[[bool], None] | None = None,
) -> RunResult:
    """Train, choose by validation, test once, save.

    Args:
        spec: what to do.
        output: the run's directory.
        resume: go on with the unfinished run in `output`; a finished one returns its result, or is
            trained on where `spec` has more steps.
        overwrite: delete what is in `output` and start again.
        console: where to say how it goes; quiet by default.
        title: what the run is called there; its method's name by default.
        report_to: where the Trainer reports to as well, such as tensorboard or wandb.
        on_begin: called when the run is nobody else's and before it begins, with whether it goes on
            from a checkpoint; not where it is finished.

    Returns:
        The content of `result.json`.

    Raises:
        RunInUseError: another process works on the run.
        SMoPError: the specification, the data, the model or the directory are not usable.
    """
    console = console or Console(quiet=True)
    directory = RunDirectory(output)
    if processes.is_first():
        directory.check(resume=resume, overwrite=overwrite)
    found = finished(spec, directory) if resume else None
    if found is not None:
        return found
    if not processes.is_first():
        return _beside_the_first(spec, directory, resume=resume)
    with directory.locked(), _memory_told(directory):
        # whoever had the lock before may have finished it
        found = finished(spec, directory) if resume else None
        if found is not None:
            return found
        if on_begin is not None:
            on_begin(resume and last_complete_checkpoint(directory.checkpoints) is not None)
        begun = begin(spec, directory, resume=resume, overwrite=overwrite)
        processes.meet()
        with _failure_told(directory):
            with bars(console) as progress:
                fitted = fit(
                    begun.training(
                        title or spec.method.name, progress, resume=resume, report_to=report_to
                    )
                )
            result = finish(begun, fitted, console)
    processes.meet()
    return result


def _beside_the_first(spec: RunSpec, directory: RunDirectory, *, resume: bool) -> RunResult:
    """Take part in a training, and read the result that the first process wrote."""
    quiet = Console(quiet=True)
    processes.meet()
    # as the first process wrote it down: what it was asked for, or an earlier version took it to be
    spec = RunSpec.load(directory.spec)
    begun = Begun(spec, prepare(spec), directory, resume, time.monotonic())
    with bars(quiet) as progress:
        fit(begun.training(spec.method.name, progress, resume=resume))
    processes.meet()
    return directory.read_result()


def run_packed(
    specs: Sequence[RunSpec],
    outputs: Sequence[Path],
    *,
    resume: bool = False,
    console: Console | None = None,
    titles: Sequence[str] | None = None,
    report_to: Sequence[str] = (),
    on_begin: Callable[[int, bool], None] | None = None,
) -> list[RunResult | SMoPError]:
    """Train several runs of one task and backbone at once; each ends as `run` would end it.

    A run is tested and saved as soon as it has ended, whatever becomes of the others.

    Args:
        specs: what to do; of the SMoP family, as `fit_packed` takes them.
        outputs: the runs' directories.
        resume: go on with unfinished runs; finished ones return their results.
        console: where to say how it goes; quiet by default.
        titles: what the runs are called there.
        report_to: as for `run`.
        on_begin: as for `run`, with the run's place among `specs` first.

    Returns:
        For every run the content of its `result.json`, or the error that ended it.

    Raises:
        SMoPError: as for `run`, before any training; or the runs cannot share a pass.
    """
    console = console or Console(quiet=True)
    results: dict[int, RunResult | SMoPError] = {}
    begun: dict[int, Begun] = {}
    with ExitStack() as locks:
        for place, (spec, output) in enumerate(zip(specs, outputs, strict=True)):
            directory, again = RunDirectory(output), resume and output.is_dir()
            directory.check(resume=again, overwrite=False)
            found = finished(spec, directory) if again else None
            if found is None:
                locks.enter_context(directory.locked())
                found = finished(spec, directory) if again else None
            if found is not None:
                results[place] = found
                continue
            if on_begin is not None:
                on_begin(
                    place, again and last_complete_checkpoint(directory.checkpoints) is not None
                )
            begun[place] = begin(spec, directory, resume=again, overwrite=False)
            # at once, so that no more than two backbones are ever held
            share_backbone(next(iter(begun.values())).prepared.model, begun[place].prepared.model)
        places = list(begun)

        def on_end(number: int, outcome: Fit | SMoPError) -> None:
            place = places[number]
            try:
                with _failure_told(begun[place].directory):
                    if isinstance(outcome, SMoPError):
                        raise outcome
                    results[place] = finish(begun[place], outcome, console, packed=len(places))
            except SMoPError as error:
                results[place] = error

        with bars(console) as progress:
            names = titles or [spec.method.name for spec in specs]
            trainings = [
                one.training(names[place], progress, resume=resume, report_to=report_to)
                for place, one in begun.items()
            ]
            if trainings:
                fit_packed(trainings, on_end=on_end)
    return [results[place] for place in range(len(specs))]


@contextmanager
def _failure_told(directory: RunDirectory) -> Iterator[None]:
    """Write down why a run that had begun did not finish."""
    try:
        with _memory_told(directory):
            yield
    except RunInUseError:
        raise
    except SMoPError as error:
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(SMoPError):  # a full disk may be the very reason
            write_json(directory.failure, {"reason": str(error), "when": when})
        raise


@contextmanager
def _memory_told(directory: RunDirectory) -> Iterator[None]:
    """Say in a sentence that memory was not enough.

    Raises:
        RunError: it was not.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        reason = str(error).split("\n")[0][:200] or "no memory is left"
        raise RunError(
            f"{directory.path} ran out of memory: {reason}; lower --batch-size or --max-length,"
            " and go on with --resume"
        ) from error
