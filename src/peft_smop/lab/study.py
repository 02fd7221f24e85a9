"""Methods on equal terms: the same data, seeds and number of trials for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from peft_smop.errors import CheckpointError, ConfigError, DivergedError, RunError, SMoPError
from peft_smop.lab.prepare import load_task_of, populations_of
from peft_smop.lab.run import run, run_packed
from peft_smop.lab.spec import RunSpec
from peft_smop.lab.variants import Variant, check_methods
from peft_smop.methods import can_pack
from peft_smop.names import RECIPES, Rate
from peft_smop.results import RunResult, read_object, write_json


def study(
    common: Mapping[str, Any],
    variants: Sequence[Variant],
    *,
    seeds: Sequence[int],
    trials: int,
    output: Path,
    pack: int = 1,
    console: Console | None = None,
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
        pack: how many runs of the SMoP family are trained at once, see `fit_packed`.
        console: where to say how it goes.

    Returns:
        The runs' directories by variant, in the order of the seeds.

    Raises:
        ConfigError: a variant occurs twice, contradicts itself, or has too small a space for the
            trials; or seeds would search on each other's test examples.
        DivergedError: a method has no learning rate at which it can be trained.
    """
    spaces = {one.name: _space(common, one) for one in variants}
    _check(variants, spaces, trials)
    for one in variants:
        if one.spec.name == "told":  # before the others are trained
            spec = _spec(common, one, None, seeds[0])
            populations_of(spec, load_task_of(spec)[1].train)
    every = {
        one.name: [_spec(common, one, rate, seeds[0]) for rate in spaces[one.name][:trials]]
        for one in variants
    }
    rates: dict[str, Rate | None] = {one.name: spaces[one.name][0] for one in variants}
    if trials > 1:
        _check_test_is_fixed([_spec(common, variants[0], None, seed) for seed in seeds])
        rates = {name: _search(every[name], name, output, pack, console) for name in every}
    jobs = {
        one.name: [_spec(common, one, rates[one.name], seed) for seed in seeds] for one in variants
    }
    everything = [(name, spec) for name, specs in jobs.items() for spec in specs]
    for outcome in _run_all(everything, output, pack, console):
        if isinstance(outcome, SMoPError):
            raise outcome
    if trials == 1:
        for name in every:  # these runs have finished: only the log is written
            _search(every[name], name, output, pack, None)
    return {name: [_where(spec, output, name) for spec in specs] for name, specs in jobs.items()}


def _search(
    specs: Sequence[RunSpec], name: str, output: Path, pack: int, console: Console | None
) -> Rate | None:
    """The learning rate with the best validation score; what was tried goes into the log.

    Raises:
        DivergedError: every trial diverged.
    """
    trials: list[dict[str, Any]] = []
    outcomes = _run_all([(name, spec) for spec in specs], output, pack, console)
    for spec, outcome in zip(specs, outcomes, strict=True):
        trial: dict[str, Any] = {"learning_rate": spec.training.learning_rate}
        if isinstance(outcome, DivergedError):
            trial |= {"validation": None, "diverged": str(outcome)}
        elif isinstance(outcome, SMoPError):
            raise outcome
        else:
            trial |= {
                "validation": outcome.validation.score,
                "seconds": outcome.training.seconds,
                "run": _where(spec, output, name).name,
            }
        trials.append(trial)
    finished = [trial for trial in trials if trial["validation"] is not None]
    if not finished:
        raise DivergedError(f"{name} diverged at every learning rate that was tried")
    chosen = max(finished, key=lambda trial: trial["validation"])["learning_rate"]
    entry = {"method": name, "seed": specs[0].seed, "trials": trials, "chosen": chosen}
    # written as it grows, so that nothing is lost when the study is stopped
    path = output / "search.json"
    same = (name, specs[0].seed, len(trials))
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


def _check(
    variants: Sequence[Variant], spaces: Mapping[str, tuple[Rate, ...]], trials: int
) -> None:
    names = [one.name for one in variants]
    check_methods(variants)
    smallest = min(names, key=lambda name: len(spaces[name]))
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
    """The learning rates to try: the one for all methods if it was given, else the method's."""
    training = common.get("training", {})
    given = training.get("learning_rate")
    return one.rates(training.get("recipe", RECIPES[0])) if given is None else (given,)


def _spec(common: Mapping[str, Any], one: Variant, rate: Rate | None, seed: int) -> RunSpec:
    training = {**common.get("training", {}), **one.training, "learning_rate": rate}
    return RunSpec.of({**common, "method": one.method, "training": training, "seed": seed})


def _where(spec: RunSpec, output: Path, name: str) -> Path:
    """A run's directory, whose name tells its content."""
    content = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    mark = hashlib.sha256(content.encode()).hexdigest()[:8]
    folder = "".join(c if c.isalnum() or c in "-=." else "_" for c in name)
    return output / "runs" / f"{folder[:60]}-lr{spec.training.learning_rate}-s{spec.seed}-{mark}"


def _run_all(
    jobs: Sequence[tuple[str, RunSpec]], output: Path, pack: int, console: Console | None
) -> list[RunResult | SMoPError]:
    """Run named specifications: packed where they can be, the rest one after the other.

    Returns:
        For every job its result, or the error by which its training ended.
    """
    outcomes: dict[int, RunResult | SMoPError] = {}
    together = [place for place, (_, spec) in enumerate(jobs) if pack > 1 and can_pack(spec.method)]
    packs = [together[i : i + pack] for i in range(0, len(together), pack)]
    alone = [[place] for place in range(len(jobs)) if place not in together]
    for places in sorted(packs + alone):
        specs = [jobs[place][1] for place in places]
        names = [jobs[place][0] for place in places]
        titles = [f"{n} lr {s.training.learning_rate}" for n, s in zip(names, specs, strict=True)]
        outputs = [_where(spec, output, name) for name, spec in zip(names, specs, strict=True)]
        if console:
            said = f"{places[0] + 1}/{len(jobs)} {', '.join(dict.fromkeys(names))}"
            together_with = f" ({len(places)} runs at once)" if len(places) > 1 else ""
            console.print(f"{said} seed {specs[0].seed}{together_with}", markup=False)
        if len(places) > 1:
            found = run_packed(specs, outputs, resume=True, console=console, titles=titles)
            outcomes.update(zip(places, found, strict=True))
            continue
        try:
            outcomes[places[0]] = run(
                specs[0], outputs[0], resume=outputs[0].is_dir(), console=console, title=titles[0]
            )
        except RunError as error:
            outcomes[places[0]] = error
    return [outcomes[place] for place in range(len(jobs))]
