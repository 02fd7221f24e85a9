"""Methods on equal terms: the same data, seeds and number of trials for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from peft_smop.errors import ConfigError
from peft_smop.lab.run import run
from peft_smop.lab.spec import RunSpec
from peft_smop.lab.store import write_json
from peft_smop.lab.variants import Variant


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
        ConfigError: a variant occurs twice, or has too small a space for the trials.
    """
    _check(variants, trials)
    every = {
        v.name: [_spec(common, v, rate, seeds[0]) for rate in _rates(v, trials)] for v in variants
    }
    groups: dict[str, list[Path]] = {}
    searched = []
    for number, one in enumerate(variants, start=1):
        if console:
            console.print(f"{number}/{len(variants)} {one.name}", markup=False)
        tried = [(spec, _run(spec, output, one.name, console)) for spec in every[one.name]]
        scores = [result["validation"]["score"] for _, (result, _) in tried]
        best = max(range(len(scores)), key=scores.__getitem__)
        chosen = tried[best][0].training.learning_rate
        searched.append(
            {
                "method": one.name,
                "seed": seeds[0],
                "trials": [
                    {
                        "learning_rate": spec.training.learning_rate,
                        "validation": result["validation"]["score"],
                        "seconds": result["training"]["seconds"],
                        "run": path.name,
                    }
                    for spec, (result, path) in tried
                ],
                "chosen": chosen,
            }
        )
        # written as it grows, so that nothing is lost when the study is stopped
        write_json(output / "search.json", {"trials_each": trials, "methods": searched})
        groups[one.name] = [
            _run(_spec(common, one, chosen, seed), output, one.name, console)[1] for seed in seeds
        ]
    return groups


def _check(variants: Sequence[Variant], trials: int) -> None:
    names = [one.name for one in variants]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"method {name!r} is named twice; name every method once")
    smallest = min(variants, key=lambda one: len(one.learning_rates))
    if trials > len(smallest.learning_rates):
        raise ConfigError(
            f"trials={trials} exceeds the {len(smallest.learning_rates)} learning rates that"
            f" {smallest.name} has to try; every method gets the same number of trials"
        )


def _rates(one: Variant, trials: int) -> tuple[float, ...]:
    return one.learning_rates[:trials]


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
    where = output / "runs" / f"{folder}-lr{spec.training.learning_rate:g}-s{spec.seed}-{mark}"
    return run(spec, where, resume=where.is_dir(), console=console), where
