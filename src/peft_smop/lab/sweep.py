"""Many runs from one specification: lists multiply, and every run has a directory of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from peft_smop.errors import ConfigError, unknown
from peft_smop.lab.spec import HISTORY, RunSpec, read_mapping
from peft_smop.lab.variants import Variant, check_method, name_of, variant
from peft_smop.methods import METHODS, MethodSpec
from peft_smop.names import RECIPES, SHORT, Rate
from peft_smop.plain_yaml import read_yaml
from peft_smop.tasks.reading import shown
from peft_smop.training import TrainingOptions

PRESETS = Path(__file__).with_name("paper.yaml")
PAPER = "paper/"
SEARCH = "search"
"""In place of a learning rate: every rate that the method's kind is searched over."""
OTHER_NAMES = {
    "tasks": "task",
    "models": "model",
    "backbone": "model",
    "backbones": "model",
    "methods": "method",
    "seeds": "seed",
    "k": "num_prompts",
    "l": "num_virtual_tokens",
    "lr": "learning_rate",
    "learning_rates": "learning_rate",
}
"""Keys of a sweep, and the fields of a run that they are lists of."""
OF_THE_RUN = ("task", "model", "data", "preset", "train_examples")
KEYS = (
    *OF_THE_RUN,
    "method",
    "num_prompts",
    "num_virtual_tokens",
    "learning_rate",
    "seed",
    "training",
    "description",
    "small",
)
MOST_RUNS = 100_000


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    name: str
    """Its method with options, for people."""
    spec: RunSpec

    @cached_property
    def directory(self) -> str:
        """The run's directory in a store, whose name tells its content."""
        return run_name(self.spec, self.name)


def run_name(spec: RunSpec, name: str) -> str:
    """A name that two runs share if they are the same one, and else never.

    Args:
        spec: the run.
        name: its method's, for people.
    """
    # what was not said is left out: a later version may have more options
    asked = spec.model_dump(mode="json", exclude=HISTORY, exclude_none=True)
    content = json.dumps(asked, sort_keys=True).encode()
    said = "-".join([Path(spec.task).stem, Path(spec.model).name, name])
    folder = "".join(c if c.isalnum() or c in "-=." else "_" for c in said)
    mark = hashlib.sha256(content).hexdigest()[:10]
    return f"{folder[:80]}-lr{spec.learning_rate}-s{spec.seed}-{mark}"


def load_sweep(
    source: str, changes: Mapping[str, Any] | None = None, *, small: bool = False
) -> list[Job]:
    """Read a preset or a file, and change it as the command line says.

    Args:
        source: `paper/table2`, or a YAML's path.
        changes: by the names of the keys.
        small: with what the specification has under `small`.

    Raises:
        ConfigError: there is no such preset; or as for `jobs_of`.
        CheckpointError: the file cannot be read.
    """
    if source.startswith(PAPER) and not Path(source).exists():
        content, base, place = _preset(source.removeprefix(PAPER)), Path.cwd(), source
    else:
        path = Path(source)
        content, base, place = read_mapping(path), path.parent, source
    content = _renamed(content, place)
    if small:
        if not isinstance(content.get("small"), dict):
            raise ConfigError(f"{place} has no small form; write one under the key small")
        content |= _renamed(content["small"], f"{place}: small")
    content.pop("small", None)
    own = _renamed(dict(changes or {}), "options")
    given = own.pop("training", {})
    for name, said in (("training", content.get("training")), ("options", given)):
        if said is not None and not isinstance(said, Mapping):
            raise ConfigError(f"{place}: {name}={shown(said)}; expected options of training")
    training = {**(content.get("training") or {}), **given}
    if "learning_rate" in own:
        training.pop("learning_rate", None)
    if "epochs" in given and "max_steps" not in given:
        training.pop("max_steps", None)  # which would go before them
    if "task" not in own and content.get("task") is not None:
        content["task"] = _overridden(content["task"], own, given)
    # paths of the file are relative to it, those of the command line to where it is given
    whole = {**_rooted(content, base), **own, **({"training": training} if training else {})}
    return jobs_of(whole, place=place)


def _overridden(tasks: Any, own: Mapping[str, Any], training: Mapping[str, Any]) -> Any:
    """A file's tasks without what the command line says, which goes before what is theirs."""
    if isinstance(tasks, list):
        return [_overridden(task, own, training) for task in tasks]
    if not isinstance(tasks, Mapping):
        return tasks
    left = {key: value for key, value in tasks.items() if key not in own}
    if isinstance(left.get("training"), Mapping):
        gone = {*training, *({"learning_rate"} & own.keys())}
        # of two ways to say how long, the command's is meant
        gone |= {"epochs", "max_steps"} if gone & {"epochs", "max_steps"} else set()
        left["training"] = {k: v for k, v in left["training"].items() if k not in gone}
    return left


def preset_names() -> dict[str, str]:
    """Every preset with its description."""
    presets = read_yaml(PRESETS.read_text(encoding="utf-8"))["presets"]
    return {f"{PAPER}{name}": content["description"] for name, content in presets.items()}


def jobs_of(content: Mapping[str, Any], *, place: str = "options") -> list[Job]:
    """Multiply what is a list.

    Args:
        content: keys of `KEYS` or their other names; a task may be a mapping with what is its own.
        place: where it stands, for people.

    Raises:
        ConfigError: a key is unknown, a value cannot be, a method is contradictory, or there are
            no runs.
    """
    known = _renamed(dict(content), place)
    for key in ("description", "small"):
        known.pop(key, None)
    if "task" not in known:
        raise ConfigError(f"{place}: no key 'task'; expected a task, or a list of tasks")
    methods = [_method(one, place) for one in _listed(known.get("method", "smop"), place, "method")]
    seeds = _seeds(known.get("seed", 0), place)
    training = known.get("training") or {}
    if not isinstance(training, Mapping):
        raise ConfigError(f"{place}: training={shown(training)}; expected options of training")
    jobs: dict[str, Job] = {}
    tasks = [_task(one, place) for one in _listed(known["task"], place, "task")]
    shared = {
        key: _listed(known[key], place, key)
        for key in ("model", "data", "preset", "train_examples")
        if known.get(key) is not None
    }
    for one, task in product(_with_lengths(methods, known, place), tasks):
        own = {**training, **task.get("training", {}), **one.training}
        rates = _rates(known, one, own, place)
        for values in product(*shared.values(), *(_listed(v, place, k) for k, v in own.items())):
            run = dict(zip(shared, values, strict=False))
            options = dict(zip(own, values[len(shared) :], strict=True))
            run |= {key: value for key, value in task.items() if key != "training"}
            for rate, seed in product(rates, seeds):
                spec = RunSpec.of(
                    {
                        **run,
                        "method": one.method,
                        "training": {**options, "learning_rate": rate},
                        "seed": seed,
                    },
                    place=place,
                )
                job = Job(name_of(spec, one), spec)
                jobs[job.directory] = job
                if len(jobs) > MOST_RUNS:
                    raise ConfigError(f"{place}: more than {MOST_RUNS:,} runs; shorten a list")
    if not jobs:
        raise ConfigError(f"{place}: no runs, as a list in it is empty")
    return _by_seed(list(jobs.values()))


def _by_seed(jobs: Sequence[Job]) -> list[Job]:
    """First every run with the first seed: a sweep that is stopped has something of all."""
    seeds = list(dict.fromkeys(job.spec.seed for job in jobs))
    return sorted(jobs, key=lambda job: seeds.index(job.spec.seed))


def _preset(name: str) -> dict[str, Any]:
    """A preset with what all have in common.

    Raises:
        ConfigError: there is none of this name.
    """
    content = read_yaml(PRESETS.read_text(encoding="utf-8"))
    if name not in content["presets"]:
        raise unknown("preset", PAPER + name, preset_names())
    return {**_renamed(content["common"], PAPER), **_renamed(content["presets"][name], PAPER)} | {
        "small": content["small"]
    }


def _renamed(content: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The content by the fields' own names.

    Raises:
        ConfigError: a key is unknown, or said under two names.
    """
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = OTHER_NAMES.get(str(key), str(key))
        if name not in KEYS:
            if name in TrainingOptions.model_fields:
                raise ConfigError(f"{place}: {name} belongs under training")
            if name in MethodSpec.model_fields:
                raise ConfigError(
                    f"{place}: {name} belongs to a method: write it after the method's name, such"
                    f" as smop:{name}={shown(value)}"
                )
            raise ConfigError(f"{place}: {unknown('key', str(key), [*KEYS, *OTHER_NAMES])}")
        if name in found:
            raise ConfigError(f"{place}: {name} is said twice, under two names")
        if key == "seeds" and isinstance(value, int) and not isinstance(value, bool):
            if value < 1:
                raise ConfigError(
                    f"{place}: seeds={value}; expected how many, at least 1, or a list"
                )
            value = list(range(value))  # so many of them
        found[name] = value
    return found


def _rooted(content: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The content of a file, its paths as seen from where the command is given."""

    def seen(value: Any, key: str) -> Any:
        if isinstance(value, list):
            return [seen(one, key) for one in value]
        if isinstance(value, Mapping):
            return {k: seen(v, k) if k in paths else v for k, v in value.items()}
        if not isinstance(value, str):
            return value
        is_path = key == "data" or value.endswith((".yaml", ".yml"))
        if key == "model":  # a task's name is a name, whatever stands beside the file
            is_path = is_path or (base / value).exists()
        return str(base / Path(value).expanduser()) if is_path else value

    paths = ("task", "model", "data")
    return {key: seen(value, key) if key in paths else value for key, value in content.items()}


def _listed(value: Any, place: str, key: str) -> list[Any]:
    found = list(value) if isinstance(value, list | tuple | range) else [value]
    if not found:
        raise ConfigError(f"{place}: {key} is an empty list; name at least one, or leave it out")
    return found


def _seeds(value: Any, place: str) -> list[int]:
    for seed in value if isinstance(value, list) else [value]:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(f"{place}: seed {shown(seed)}; expected a whole number")
    return _listed(value, place, "seeds")


def _task(value: Any, place: str) -> dict[str, Any]:
    """A task, with what is its own where it is a mapping."""
    if isinstance(value, str | Path):
        return {"task": str(value)}
    if not isinstance(value, Mapping) or "task" not in value:
        raise ConfigError(
            f"{place}: task {shown(value)}; expected a name of smop tasks, a YAML's path, or a"
            " mapping with the key task"
        )
    strange = [k for k in value if k not in (*OF_THE_RUN, "training")]
    if strange:
        raise ConfigError(
            f"{place}: task {shown(value['task'])}:"
            f" {unknown('key', str(strange[0]), [*OF_THE_RUN, 'training'])}"
        )
    if not isinstance(value.get("training", {}), Mapping):
        raise ConfigError(
            f"{place}: training={shown(value['training'])} of task {shown(value['task'])};"
            " expected options of training"
        )
    return dict(value)


def _method(value: Any, place: str) -> Variant:
    """A method by its name with options, or as a mapping.

    Raises:
        ConfigError: it is unknown.
    """
    if isinstance(value, str):
        try:
            return variant(value)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise ConfigError(
            f"{place}: method {shown(value)}; expected a name of smop methods, with options after"
            " colons, or a mapping with the key name"
        )
    named = _method(value["name"], place)
    more = {SHORT.get(str(k), str(k)): v for k, v in value.items() if k != "name"}
    text = ":".join([value["name"], *(f"{k}={v}" for k, v in more.items())])
    RunSpec.of({"task": "any", "method": {**named.method, **more}}, place=f"{place}: method")
    return Variant(text, {**named.method, **more}, named.training, named.paper)


def _with_lengths(
    methods: Sequence[Variant], known: Mapping[str, Any], place: str
) -> Iterator[Variant]:
    """Every method with every k and l, as far as it has them and did not say its own.

    Raises:
        ConfigError: no method has them; or a method contradicts itself.
    """
    axes = {
        key: _listed(known[key], place, key)
        for key in ("num_prompts", "num_virtual_tokens")
        if known.get(key) is not None
    }
    for key in axes:
        if not any(key in METHODS[one.method["name"]].options for one in methods):
            named = ", ".join(one.name for one in methods)
            raise ConfigError(f"{place}: {key} is no option of {named}; leave it out")
    for one in methods:
        said = {part.partition("=")[0] for part in one.name.split(":")[1:]}
        own = {
            key: values
            for key, values in axes.items()
            if key in METHODS[one.method["name"]].options
            and not said & {key, "k" if key == "num_prompts" else "l"}
        }
        for values in product(*own.values()):
            method = {**one.method, **dict(zip(own, values, strict=True))}
            RunSpec.of({"task": "any", "method": method}, place=place)
            made = Variant(one.name, method, one.training, one.paper)
            check_method(made)
            yield made


def _rates(
    known: Mapping[str, Any], one: Variant, options: dict[str, Any], place: str
) -> list[Rate | None]:
    """The learning rates of a method; taken out of its options, where they may be said too."""
    own = options.pop("learning_rate", None)
    given = one.training.get("learning_rate", known.get("learning_rate"))
    if (
        own is not None
        and given is not None
        and "learning_rate" not in one.training
        and own != given
    ):
        raise ConfigError(f"{place}: learning_rate is said twice, once under training")
    given = own if given is None else given
    if given == SEARCH:
        return list(one.rates(str(options.get("recipe", RECIPES[0]))))
    return _listed(given, place, "learning_rate")
