"""Your own task: a YAML of about five lines over JSONL, CSV or Parquet.

    name: tickets
    template: "ticket: {subject} {body}"
    labels: {0: normal, 1: urgent}
    data: tickets.csv

Everything in the YAML is read as text, so `yes` and `1` are the words they look like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError

from peft_smop.errors import ConfigError, DataError, unknown
from peft_smop.plain_yaml import PlainYamlError, WithoutAliases
from peft_smop.tasks.decoding import checked_encoding, decode, read_bytes
from peft_smop.tasks.examples import Columns, to_examples
from peft_smop.tasks.holdout import Examples
from peft_smop.tasks.reading import Writing, read_rows, shown
from peft_smop.tasks.splits import PARTS
from peft_smop.tasks.task import Task

Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


def _as_mapping(labels: object) -> object:
    """A list of labels: each is answered as it stands."""
    if isinstance(labels, list) and all(isinstance(label, str) for label in labels):
        return {label: label for label in labels}
    return labels


class OwnTask(BaseModel):
    """The keys of the YAML.

    Attributes:
        name: of the task.
        template: with the names of fields in braces.
        labels: label, as it stands in the data -> verbalizer.
        data: one file, divided 80 / 10 / 10.
        train: a file; with `validation`, `test` or both in place of `data`.
        validation: a file.
        test: a file.
        metric: "accuracy", or "f1" of the last of two labels.
        label: the field that holds the label.
        id: a field with a unique id; the line's number where absent.
        group: a field whose rows are never separated, such as an author or a document.
        population: a field with a known sub-population, for looking at routes.
        may_be_empty: fields of the template that may be empty.
        delimiter: between the values of CSV; `;` where spreadsheets write it.
        encoding: of the files, such as cp1252; UTF-8 where absent.
        quoting: "none" where quotes are characters like others, as they are in TSV; or "double".
        description: one line for people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    template: Text
    labels: Annotated[dict[Text, Text], BeforeValidator(_as_mapping)]
    data: Text | None = None
    train: Text | None = None
    validation: Text | None = None
    test: Text | None = None
    metric: Literal["accuracy", "f1"] = "accuracy"
    label: Text = "label"
    id: Text | None = None
    group: Text | None = None
    population: Text | None = None
    may_be_empty: tuple[Text, ...] = ()
    delimiter: Literal[",", ";", "\t", "|", ":"] | None = None
    encoding: Text | None = None
    quoting: Literal["double", "none"] | None = None
    description: str = ""

    def files(self) -> dict[str, str]:
        """The files by what they hold."""
        named = {part: getattr(self, part) for part in ("data", *PARTS)}
        return {part: name for part, name in named.items() if name is not None}


def load_own(path: Path) -> tuple[Task, dict[str, Examples], dict[str, str]]:
    """Read a task's YAML and the files it names.

    Returns:
        The task, the examples of each part, and where each part came from.

    Raises:
        DataError: naming the YAML, or the data file, and the line.
    """
    spec, task, refuse = _define(path)
    columns = Columns(spec.label, spec.id, spec.group, spec.population)
    writing = Writing(spec.delimiter, spec.encoding, spec.quoting)
    if spec.encoding is not None:
        try:
            checked_encoding(spec.encoding, str(path))
        except DataError as error:
            raise refuse(
                "encoding", f"encoding is {shown(spec.encoding)}", "such as utf-8, cp1252"
            ) from error
    parts: dict[str, Examples] = {}
    sources: dict[str, str] = {}
    for part, name in spec.files().items():
        file = path.parent / name
        if not file.exists():
            raise refuse(part, f"{file} is missing", "a file, relative to the folder of the YAML")
        for earlier, other in sources.items():
            if file.samefile(other):
                raise refuse(
                    part, f"{name} is the file of {earlier} too", "files without rows in common"
                )
        rows = read_rows(file, columns=(*task.fields, *columns.names()), writing=writing)
        parts[part] = to_examples(rows, task, columns)
        sources[part] = str(file)
    return task, parts, sources


def define_own(path: Path) -> Task:
    """Read a task's YAML, and none of the files it names.

    Raises:
        DataError: naming the YAML and the line.
    """
    return _define(path)[1]


Refuse = Callable[[str | None, str, str | None], DataError]


def _define(path: Path) -> tuple[OwnTask, Task, Refuse]:
    """The keys of a YAML, the task they make, and how something about one of them is refused."""
    content, lines = _read_yaml(path)

    def refuse(key: str | None, problem: str, expected: str | None = None) -> DataError:
        return DataError.at(path, lines.get(key) if key else None, problem, expected=expected)

    for key in content:
        if key not in OwnTask.model_fields:
            raise refuse(key, str(unknown("key", key, OwnTask.model_fields)))
    try:
        spec = OwnTask.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "missing":
            raise refuse(None, f"no key {key!r}", "it beside the others") from error
        problem = f"{key} is {shown(first['input'])}"
        raise refuse(key, problem, _expectation(first["msg"])) from error
    named = [part for part in PARTS if getattr(spec, part) is not None]
    if spec.data is not None and named:
        stranger = named[0]
        raise refuse(stranger, f"{stranger!r} beside 'data'", "either data, or files for the parts")
    if spec.data is None and ("train" not in named or len(named) < 2):
        raise refuse(
            None,
            f"no 'data' and of the parts only {', '.join(named) or 'none'}",
            "data, or train with validation or test or both",
        )
    try:
        task = Task(
            name=spec.name,
            template=spec.template,
            labels=tuple(spec.labels),
            verbalizers=tuple(spec.labels.values()),
            metric=spec.metric,
            description=spec.description or f"from {path.name}",
            may_be_empty=spec.may_be_empty,
        )
    except ConfigError as error:
        blamed = next(key for start, key in _BLAMED if str(error).startswith(start))
        raise refuse(blamed, str(error)) from error
    return spec, task, refuse


# How a sentence of Task's begins -> the key it is about.
_BLAMED = (
    ("template", "template"),
    ("label", "labels"),
    ("verbalizer", "labels"),
    ("an empty verbalizer", "labels"),
    ("metric", "metric"),
    ("unknown field of the template", "may_be_empty"),
)


def _expectation(message: str) -> str:
    """Turn pydantic's "Input should be X" into X."""
    return message.removeprefix("Input should be ").removeprefix("String should have ")


def _read_yaml(path: Path) -> tuple[dict[str, object], Mapping[str, int]]:
    """Return the mapping, all scalars as text, and the line of every key.

    Raises:
        DataError: where the file is no YAML mapping, or has a key twice.
    """
    text = decode(read_bytes(path), str(path))
    try:
        # all text, since YAML's own rules would make the labels yes and no into booleans
        root = yaml.compose(text, Loader=WithoutAliases)
        content = yaml.load(text, Loader=WithoutAliases)
    except PlainYamlError as error:
        raise DataError.at(path, error.line, str(error)) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise DataError.at(path, line, f"broken YAML ({error.problem})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError.at(path, None, "broken YAML") from error
    if not isinstance(root, yaml.MappingNode):
        what = "is empty" if root is None else f"is {shown(content)}"
        raise DataError.at(path, None, what, expected="keys such as name, template, labels, data")
    lines: dict[str, int] = {}
    for mapping in (root, *(value for _, value in root.value)):
        seen = set()
        for key, _ in mapping.value if isinstance(mapping, yaml.MappingNode) else ():
            line = key.start_mark.line + 1
            if key.value in seen:
                raise DataError.at(path, line, f"key {key.value!r} twice", expected="it once")
            seen.add(key.value)
            if mapping is root:
                lines[key.value] = line
    return content, lines
