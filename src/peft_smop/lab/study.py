"""Methods on equal terms: the same data, seeds and number of trials for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from peft_smop.errors import CheckpointError, ConfigError, DivergedError, RunError, SMoPError
from peft_smop.lab.local import run_locally
from peft_smop.lab.prepare import load_task_of, populations_of
from peft_smop.lab.spec import RunSpec
from peft_smop.lab.sweep import Job
from peft_smop.lab.variants import Variant, check_methods
from peft_smop.lab.working import Store
from peft_smop.names import RECIPES, Rate
from peft_smop.results import read_object, write_json

Work: TypeAlias = Callable[[Sequence[Job], Store], dict[str, SMoPError]]
"""Runs what is not finished of a store, as `run_locally` does; why those failed that did, by their
directories."""


def study(
    common: Mapping[str, Any],
    variants: Sequence[Variant],
    *,
    seeds: Sequence[int],
    trials: int,
    output: Path,
    engine: Work = run_locally,
) -> dict[str, list[Path]]:
    """Run every variant with every seed; runs that are finished are not run again.

    With more than one trial a variant's learning rate is chosen by validation score on the first
    seed among the first `trials` of its space, and `OUTPUT/search.json` says what was tried. No
    test score enters the choice.

    Args:
        common: what all runs share, as for `RunSpec.of`; "training" may be partly given.
        variants: the methods.
        seeds: of initialisation, noise, data order and, where the task is split here, split.
        trials: learning rates to try for each variant.
        output: a directory for all runs.
        engine: who runs them.

    Returns:
        The runs' directories by variant, in the order of the seeds.

    Raises:
        ConfigError: a variant occurs twice, contradicts itself, or has too small a space for the
            trials; or seeds would search on each other's test examples.
        DivergedError: a method has no learning rate at which it can be trained.
        RunError: the directory holds runs that are named in another way.
        SMoPError: a run failed; the others have finished.
    """
    spaces = {one.name: _space(common, one) for one in variants}
    _check(variants, spaces, trials)
    for one in variants:
        if one.spec.name == "told":  # before the others are trained
            spec = _spec(common, one, None, seeds[0])
            populations_of(spec, load_task_of(spec)[1].train)
    tried = {
        one.name: [
            Job(one.name, _spec(common, one, rate, seeds[0])) for rate in spaces[one.name][:trials]
        ]
        for one in variants
    }
    if trials > 1:
        _check_test_is_fixed([_spec(common, variants[0], None, seed) for seed in seeds])
    _check_own(output)
    store = Store(output)
    rates: dict[str, Rate | None] = {one.name: spaces[one.name][0] for one in variants}
    if trials > 1:
        failed = engine([job for own in tried.values() for job in own], store)
        rates = {name: _choose(name, own, store, failed) for name, own in tried.items()}
    jobs = {
        one.name: [Job(one.name, _spec(common, one, rates[one.name], seed)) for seed in seeds]
        for one in variants
    }
    for error in engine([job for own in jobs.values() for job in own], store).values():
        raise error
    if trials == 1:
        for name, own in tried.items():  # these runs have finished: only the log is written
            _choose(name, own, store, {})
    return {name: [store.run(job).path for job in own] for name, own in jobs.items()}


def _choose(
    name: str, jobs: Sequence[Job], store: Store, failed: Mapping[str, SMoPError]
) -> Rate | None:
    """The learning rate with the best validation score; what was tried goes into the log.

    Raises:
        DivergedError: every trial diverged.
        SMoPError: one failed for another reason.
    """
    trials: list[dict[str, Any]] = []
    for job in jobs:
        trial: dict[str, Any] = {"learning_rate": job.spec.training.learning_rate}
        error = failed.get(job.directory)
        if isinstance(error, DivergedError):
            trial |= {"validation": None, "diverged": str(error)}
        elif error is not None:
            raise error
        else:
            result = store.run(job).read_result()
            trial |= {
                "validation": result.validation.score,
                "seconds": result.training.seconds,
                "run": job.directory,
            }
        trials.append(trial)
    finished = [trial for trial in trials if trial["validation"] is not None]
    if not finished:
        raise DivergedError(f"{name} diverged at every learning rate that was tried")
    chosen = max(finished, key=lambda trial: trial["validation"])["learning_rate"]
    seed = jobs[0].spec.seed
    entry = {"method": name, "seed": seed, "trials": trials, "chosen": chosen}
    # written as it grows, so that nothing is lost when the study is stopped
    path = store.path / "search.json"
    same = (name, seed, len(trials))
    others = [e for e in _log(path) if (e["method"], e["seed"], len(e["trials"])) != same]
    write_json(path, {"methods": [*others, entry]})
    return chosen


def _log(path: Path) -> list[dict[str, Any]]:
    """What was searched before.

    Raises:
        CheckpointError: the log is damaged.
    """
    if not path.is_file():
        return []
    entries = read_object(path, "a log of searches").get("methods")
    needed = {"method", "seed", "trials"}
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and needed <= e.keys() and isinstance(e["trials"], list)
        for e in entries
    ):
        raise CheckpointError(
            f"{path} cannot be read as a log of searches: expected methods, each with its seed and"
            " trials; delete it, as it is written anew from the runs"
        )
    return entries


def _check_own(output: Path) -> None:
    """Refuse a directory in which runs would be mixed with others that no sweep made.

    Raises:
        RunError: with what to give instead.
    """
    if (output / "sweep.json").is_file():
        return
    others = [*output.glob("*/spec.yaml"), *output.glob("runs/*/spec.yaml")]
    if others:
        raise RunError(
            f"{output} holds runs that no sweep made, or an earlier release ({others[0].parent});"
            " give --output another directory, so that the two are not mixed"
        )


def _check(
    variants: Sequence[Variant], spaces: Mapping[str, tuple[Rate, ...]], trials: int
) -> None:
    check_methods(variants)
    smallest = min((one.name for one in variants), key=lambda name: len(spaces[name]))
    if trials > len(spaces[smallest]):
        raise ConfigError(
            f"trials={trials} exceeds the {len(spaces[smallest])} learning rates that"
            f" {smallest} has to try; every method gets the same number of trials"
        )


def _check_test_is_fixed(specs: Sequence[RunSpec]) -> None:
    """Refuse to search on one seed where its validation examples are another seed's test."""
    tests = {load_task_of(spec)[1].record()["parts"]["test"]["sha256"] for spec in specs}
    if len(tests) > 1:
        raise ConfigError(
            "with this split every seed has test examples of its own, among them some that the"
            " search would see on the first seed; use --trials 1, or a split with a fixed test part"
        )


def _space(common: Mapping[str, Any], one: Variant) -> tuple[Rate, ...]:
    """The learning rates to try: the variant's own, the one for all, or the method's."""
    training = {**common.get("training", {}), **one.training}
    given = training.get("learning_rate")
    return one.rates(training.get("recipe", RECIPES[0])) if given is None else (given,)


def _spec(common: Mapping[str, Any], one: Variant, rate: Rate | None, seed: int) -> RunSpec:
    training = {**common.get("training", {}), **one.training, "learning_rate": rate}
    return RunSpec.of({**common, "method": one.method, "training": training, "seed": seed})
