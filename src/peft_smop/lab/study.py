"""Methods on equal terms: the same data, seeds and number of trials for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from peft_smop.errors import ConfigError, DivergedError
from peft_smop.lab.run import load_task_of, run
from peft_smop.lab.spec import RunSpec
from peft_smop.lab.store import write_json
from peft_smop.lab.variants import Variant, check_methods


def study(
    common: Mapping[str, Any],
    variants: Sequence[Variant],
    *,
    seeds: Sequence[int],
    trials: int,
    output: Path,
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
    every = {
        one.name: [_spec(common, one, rate, seeds[0]) for rate in spaces[one.name][:trials]]
        for one in variants
    }
    if trials > 1:
        _check_test_is_fixed([_spec(common, variants[0], None, seed) for seed in seeds])
    groups: dict[str, list[Path]] = {}
    for number, one in enumerate(variants, start=1):
        if console:
            console.print(f"{number}/{len(variants)} {one.name}", markup=False)
        rate = _search(every[one.name], one.name, output, console)
        groups[one.name] = [
            _run(_spec(common, one, rate, seed), output, one.name, console)[1] for seed in seeds
        ]
    return groups


def _search(
    specs: Sequence[RunSpec], name: str, output: Path, console: Console | None
) -> float | None:
    """The learning rate with the best validation score; what was tried goes into the log.

    Raises:
        DivergedError: every trial diverged.
    """
    trials: list[dict[str, Any]] = []
    for spec in specs:
        trial: dict[str, Any] = {"learning_rate": spec.training.learning_rate}
        try:
            result, path = _run(spec, output, name, console)
            trial |= {
                "validation": result["validation"]["score"],
                "seconds": result["training"]["seconds"],
                "run": path.name,
            }
        except DivergedError as error:
            if len(specs) == 1:
                raise
            trial |= {"validation": None, "diverged": str(error)}
        trials.append(trial)
    finished = [trial for trial in trials if trial["validation"] is not None]
    if not finished:
        raise DivergedError(f"{name} diverged at every learning rate that was tried")
    chosen = max(finished, key=lambda trial: trial["validation"])["learning_rate"]
    entry = {"method": name, "seed": specs[0].seed, "trials": trials, "chosen": chosen}
    # written as it grows, so that nothing is lost when the study is stopped
    path = output / "search.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"methods": []}
    same = (name, specs[0].seed, len(trials))
    others = [e for e in before["methods"] if (e["method"], e["seed"], len(e["trials"])) != same]
    write_json(path, {"methods": [*others, entry]})
    return chosen


def _check(
    variants: Sequence[Variant], spaces: Mapping[str, tuple[float, ...]], trials: int
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


def _space(common: Mapping[str, Any], one: Variant) -> tuple[float, ...]:
    """The learning rates to try: the one for all methods if it was given, else the method's."""
    given = common.get("training", {}).get("learning_rate")
    return one.learning_rates if given is None else (given,)


def _spec(common: Mapping[str, Any], one: Variant, rate: float | None, seed: int) -> RunSpec:
    training = {**common.get("training", {}), **one.training, "learning_rate": rate}
    return RunSpec.of({**common, "method": one.method, "training": training, "seed": seed})


def _run(
    spec: RunSpec, output: Path, name: str, console: Console | None
) -> tuple[dict[str, Any], Path]:
    """One run, in a directory whose name tells its content."""
    content = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    mark = hashlib.sha256(content.encode()).hexdigest()[:8]
    folder = "".join(c if c.isalnum() or c in "-=." else "_" for c in name)
    where = output / "runs" / f"{folder[:60]}-lr{spec.training.learning_rate:g}-s{spec.seed}-{mark}"
    title = f"{name} lr {spec.training.learning_rate:g}"
    return run(spec, where, resume=where.is_dir(), console=console, title=title), where
