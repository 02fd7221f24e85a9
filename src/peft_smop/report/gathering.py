"""Finished runs, checked, put together by what they are: the seeds of one method on one task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from peft_smop.errors import CheckpointError, RunError
from peft_smop.plain_yaml import PlainYamlError, read_yaml
from peft_smop.report.paper import Key, key_of, label_of
from peft_smop.results import RunDirectory, RunResult, read_object, read_text

OF_A_RUN = ("seed", "continued_at")
"""What may differ between runs that are averaged."""


@dataclass(frozen=True)
class Found:
    """One finished run, every file of which is as it was written."""

    path: Path
    result: RunResult
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """All seeds of one method with one set of options on one task and backbone."""

    label: str
    key: Key
    task: str
    model: str
    runs: tuple[Found, ...]
    """In the order of their seeds."""
    rates: tuple[float, ...]
    """The learning rates that were tried; the runs are those of the best by validation."""

    @property
    def scores(self) -> tuple[float, ...]:
        """The test score of each seed."""
        return tuple(run.result.test.value for run in self.runs)

    @property
    def mean(self) -> float:
        """Over seeds."""
        return mean(self.scores)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        return stdev(self.scores) if len(self.runs) > 1 else None

    @property
    def paths(self) -> list[Path]:
        """The runs' directories."""
        return [run.path for run in self.runs]


def gather(places: Iterable[Path]) -> list[Group]:
    """Find finished runs in directories, and group them.

    Args:
        places: runs' directories, or directories that hold them at any depth.

    Returns:
        Groups in the order in which they were found; for each the learning rate that was best by
        mean validation score.

    Raises:
        RunError: a place is not there, or holds no finished run.
        CheckpointError: a run is not finished, or not as it was written.
    """
    found: dict[Path, Found] = {}
    for place in places:
        if not place.is_dir():
            raise RunError(f"{place} is not a directory; expected a run's, or one that holds runs")
        own = _runs_in(place)
        if not own:
            begun = next(place.rglob("spec.yaml"), None)
            if begun is not None:
                raise RunDirectory(begun.parent).unfinished()
            raise RunError(f"{place} holds no finished run")
        for path in own:
            found.setdefault(path.resolve(), _read(path))
    by_content: dict[str, dict[float, list[Found]]] = {}
    for run in found.values():
        same = json.dumps(_asked(run.spec), sort_keys=True)
        rates = by_content.setdefault(same, {})
        rates.setdefault(run.result.training.learning_rate, []).append(run)
    return _told_apart([_group(rates) for rates in by_content.values()])


def _runs_in(place: Path) -> list[Path]:
    """The finished runs of a directory; those of a sweep in the order in which it has them."""
    found = [path.parent for path in sorted(place.rglob("result.json"))]
    listing = place / "sweep.json"
    if not listing.is_file():
        return found
    order = list(read_object(listing, "a list of runs").get("runs", {}))
    return sorted(found, key=lambda p: order.index(p.name) if p.name in order else len(order))


def _read(path: Path) -> Found:
    directory = RunDirectory(path)
    result = directory.read_result()
    try:
        spec = read_yaml(read_text(directory.spec, "a run's specification"))
    except PlainYamlError as error:
        raise CheckpointError(f"{directory.spec} cannot be read: {error}") from error
    return Found(path, result, spec)


def _group(rates: Mapping[float, Sequence[Found]]) -> Group:
    most = max(len(_seeds(runs)) for runs in rates.values())
    # a rate with fewer seeds may owe its mean to the seeds that it has
    complete = {rate: runs for rate, runs in rates.items() if len(_seeds(runs)) == most}
    best = max(complete, key=lambda rate: mean(r.result.validation.score for r in complete[rate]))
    runs = {run.result.seed: run for run in complete[best]}
    first = next(iter(runs.values()))
    key = key_of(first.result.method)
    return Group(
        label=label_of(key),
        key=key,
        task=first.result.task,
        model=Path(first.result.model).name,
        runs=tuple(runs[seed] for seed in sorted(runs)),
        rates=tuple(sorted(rates, reverse=True)),
    )


def _seeds(runs: Sequence[Found]) -> set[int]:
    return {run.result.seed for run in runs}


def _told_apart(groups: list[Group]) -> list[Group]:
    """Give groups that would be called the same the options by which they differ."""
    named: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        named.setdefault((group.label, group.task, group.model), []).append(group)
    labels = {}
    for same in named.values():
        if len(same) == 1:
            continue
        flat = [_flat(_asked(group.runs[0].spec)) for group in same]
        keys = sorted(set().union(*flat))
        differ = [k for k in keys if len({json.dumps(f.get(k)) for f in flat}) > 1]
        for group, own in zip(same, flat, strict=True):
            said = " ".join(f"{k}={own[k]}" for k in differ if k in own)
            labels[id(group)] = f"{group.label} ({said})" if said else group.label
    return [
        Group(labels.get(id(g), g.label), g.key, g.task, g.model, g.runs, g.rates) for g in groups
    ]


def _asked(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What runs that are averaged have in common.

    Null says nothing, as earlier versions lack what came later; nor does a head's own way to read,
    which was the only one. What a head read is one thing, whether it was asked for or not.
    """
    found = _said({key: _said(value) for key, value in spec.items() if key not in OF_A_RUN})
    asked = found.get("method", {}).pop("pooling", None)
    found.get("training", {}).pop("learning_rate", None)
    if found.setdefault("pooled", asked) in (None, "own"):
        del found["pooled"]
    return found


def _said(value: Any) -> Any:
    """A mapping without its keys that hold null."""
    if not isinstance(value, Mapping):
        return value
    return {key: inner for key, inner in value.items() if inner is not None}


def _flat(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for outer, inner in spec.items()
        for key, value in (inner.items() if isinstance(inner, Mapping) else [(outer, inner)])
    }
