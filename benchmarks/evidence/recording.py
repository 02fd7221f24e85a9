"""Finished runs as records: of each task on each backbone a line for every run, with its answers.

Runs of later sittings so join those of earlier ones, and methods are held against each other on the
same examples and seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from peft_smop.errors import RunError
from peft_smop.names import DESCRIBED
from peft_smop.plain_yaml import read_yaml
from peft_smop.report import outcomes_of
from peft_smop.report.paper import key_of, label_of
from peft_smop.results import RunDirectory, read_text
from peft_smop.training import TrainingOptions

RECORDS = Path(__file__).parent / "records"
TOLD_APART = ("name", "recipe", "options", "precision", "steps", "evaluated_every", "batch")
"""By which a record's runs are put together, with all rates that were tried."""
OF_DATA = ("train_examples", "preset", "continued_at")
"""What else of a specification makes a run another one."""
NOT_NAMED = {
    *("max_steps", "eval_steps", "batch_size", "recipe", "learning_rate", "keep_texts", "dropout"),
    "precision",
}
"""Training options that are told apart otherwise, or change no result."""


class Backbone(NamedTuple):
    """What a recipe goes by."""

    spread: float
    """The standard deviation of its embeddings."""
    drops: bool
    """Whether it has dropout of its own."""
    pooling: str = "own"
    """What it says that a text is read by."""


BACKBONES = {
    "embedded": Backbone(1.3253, drops=False),
    "minilm-l6": Backbone(0.0537, drops=True, pooling="mean"),
    "smollm2-135m": Backbone(0.136, drops=False),
}

ANY_CPU = "cpu x86_64 DEFAULT"
"""The device of runs by `any-cpu.env`."""
_OF_RUNS = ("truth", "runs")
"""What of a record grows with its runs."""

Run = dict[str, Any]
Record = dict[str, Any]


def has_dropout(model: str) -> bool:
    """Whether a backbone has dropout of its own; of an unknown one it is taken to."""
    return model not in BACKBONES or BACKBONES[model].drops


def meant_pooling(model: str, name: str, recipe: str) -> str:
    """What a head reads by a recipe.

    Args:
        model: a backbone.
        name: of a method; those that change weights leave a head as it is.
        recipe: by which it is trained.
    """
    said = BACKBONES[model].pooling if model in BACKBONES else "own"
    takes_it = "pooling" in DESCRIBED[name.split()[0]].options
    return said if takes_it and recipe == "default" else "own"


def run_of(path: Path) -> tuple[Run, Record]:
    """A finished run, every file of which is as it was written, and the record it belongs to."""
    directory = RunDirectory(path)
    result = directory.read_result()
    spec = read_yaml(read_text(directory.spec, "a run's specification"))
    training = spec["training"]
    usual = TrainingOptions().model_dump()
    drops = training.get("dropout", True)
    meant = DESCRIBED[result.method["name"]].drops(result.training.recipe)
    model = Path(result.model).name
    reads = spec.get("pooled") or spec["method"].get("pooling") or "own"
    read = meant_pooling(model, result.method["name"], result.training.recipe)
    outcomes = {example: pair for (_, example), pair in sorted(outcomes_of([path]).items())}
    run = {
        "name": label_of(key_of({k: v for k, v in result.method.items() if k != "pooling"})),
        "recipe": result.training.recipe,
        "options": {
            name: value
            for name, value in training.items()
            if name not in NOT_NAMED and value != usual.get(name)
        }
        | {name: spec[name] for name in OF_DATA if spec.get(name) not in (None, [], ())}
        | ({"dropout": drops} if drops != meant and has_dropout(model) else {})
        | ({"pooling": reads} if reads != read else {})
        | ({"cpu": "any"} if result.environment["device"] == ANY_CPU else {}),
        "precision": result.environment.get("precision", "float32"),
        "rate": result.training.learning_rate,
        "steps": training.get("max_steps") or result.training.steps,
        "evaluated_every": training.get("eval_steps"),
        "batch": training["batch_size"],
        "seed": result.seed,
        "split": {part: digest[:12] for part, digest in result.split.items()},
        "best_step": result.training.best_step,
        "seconds": result.training.seconds,
        "validation": round(result.validation.score, 3),
        "test": round(result.test.value, 3),
        "majority": round(result.test.majority, 3),
        "trainable": result.parameters.trainable,
        "load": [round(share, 4) for share in result.test.load],
        "routing": None if result.routing is None else result.routing.model_dump(),
        "environment": result.environment,
        "predicted": [predicted for _, predicted in outcomes.values()],
    }
    record = {
        "task": Path(result.task).stem,
        "model": model,
        "metric": result.test.metric,
        "labels": len(directory.read_task()["labels"]),
        "truth": {str(result.seed): [truth for truth, _ in outcomes.values()]},
    }
    return run, record


def collect(stores: Iterable[Path]) -> list[Path]:
    """Add the finished runs of stores to the records.

    Returns:
        The records.

    Raises:
        RunError: a store has no finished run, or a run was not tested on the examples of its
            record.
    """
    changed: dict[Path, Record] = {}
    for path in _finished_in(stores):
        run, record = run_of(path)
        place = _place_of(record)
        if place not in changed:
            changed[place] = read(place) if place.is_file() else {**record, "runs": []}
        known = changed[place]
        _check_examples(path, run, record, known)
        known["truth"] = record["truth"] | known["truth"]
        same = identity(run)
        known["runs"] = [other for other in known["runs"] if identity(other) != same] + [run]
    RECORDS.mkdir(exist_ok=True)
    for place, record in changed.items():
        place.write_text(written(record), encoding="utf-8")
    return list(changed)


class Again(NamedTuple):
    """A run beside what is recorded of it."""

    path: Path
    test: float
    recorded: float | None
    """Its test score; None: there is no such run in the records."""
    others: int | None
    """How many of its answers are others; None: none are recorded."""


def again(stores: Iterable[Path]) -> Iterator[Again]:
    """Hold the finished runs of stores against those of the records.

    Raises:
        RunError: a store has no finished run, or one of other examples than the records'.
    """
    for path in _finished_in(stores):
        run, record = run_of(path)
        place, same = _place_of(record), identity(run)
        before = None
        if place.is_file():
            known = read(place)
            _check_examples(path, run, record, known)
            before = next((other for other in known["runs"] if identity(other) == same), None)
        if before is None:
            yield Again(path, run["test"], None, None)
            continue
        answers, others = before["predicted"], None
        if answers is not None:
            others = sum(one != two for one, two in zip(run["predicted"], answers, strict=True))
        yield Again(path, run["test"], before["test"], others)


def _check_examples(path: Path, run: Run, record: Record, known: Record) -> None:
    """Refuse a run that learned from other examples than its record's, or was tested on others.

    Raises:
        RunError: it is one.
    """
    place = _place_of(record)
    of_seed = record["truth"].items()
    same = all(known[key] == value for key, value in record.items() if key not in _OF_RUNS)
    if not same or any(known["truth"].get(seed, truth) != truth for seed, truth in of_seed):
        raise RunError(f"{path} was tested on other examples than the runs of {place}")
    parts = {json.dumps(one["split"]) for one in known["runs"] if one["seed"] == run["seed"]}
    if not parts <= {json.dumps(run["split"]), "null"}:
        raise RunError(f"{path} was trained on other examples than the runs of {place}")


def _finished_in(stores: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for store in stores:
        results = sorted(store.rglob("result.json"))
        if not results:
            raise RunError(f"{store} holds no finished run; expected a store, or a run's directory")
        found += [result.parent for result in results]
    return found


def _place_of(record: Record) -> Path:
    return RECORDS / f"{record['task']}-{record['model']}.json"


def identity(run: Run) -> str:
    """By which a run is told from others of its record."""
    return json.dumps([run[key] for key in (*TOLD_APART, "rate", "seed")], sort_keys=True)


def read(path: Path) -> Record:
    """A record."""
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def written(record: Record) -> str:
    """A record as text, a line for each run."""
    head = {key: value for key, value in record.items() if key != "runs"}
    lines = ",\n".join(json.dumps(run) for run in sorted(record["runs"], key=identity))
    return json.dumps(head)[:-1] + ',\n"runs": [\n' + lines + "\n]}\n"
