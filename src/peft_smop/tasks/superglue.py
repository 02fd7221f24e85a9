"""Six tasks of SuperGLUE with the paper's templates and verbalizers (its Table 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_smop.errors import DataError
from peft_smop.tasks.examples import Columns, to_examples
from peft_smop.tasks.holdout import Examples
from peft_smop.tasks.hub import read_hub
from peft_smop.tasks.reading import Row, listed, read_rows, shown
from peft_smop.tasks.task import Task

_FILES = {"train": "train.jsonl", "validation": "val.jsonl"}
"""The official test set has no labels, so it takes no part."""


def flatten_multirc(rows: Iterable[Row]) -> Iterator[Row]:
    """Make one row of every answer option; ids are `passage-question-answer`.

    Raises:
        DataError: where a passage is not nested as the benchmark nests it.
    """
    for row in rows:
        passage = _inside(row, row.fields, "passage", dict)
        for question in _inside(row, passage, "questions", list):
            for answer in _inside(row, question, "answers", list):
                index = [_inside(row, part, "idx", int) for part in (row.fields, question, answer)]
                fields = {
                    "paragraph": _inside(row, passage, "text", str),
                    "question": _inside(row, question, "question", str),
                    "answer": _inside(row, answer, "text", str),
                    "idx": "-".join(str(number) for number in index),
                    "passage": index[0],
                }
                if "label" in answer:
                    fields["label"] = answer["label"]
                yield Row(fields, row.source, row.number)


def _inside(row: Row, whole: Any, field: str, kind: type) -> Any:
    if not isinstance(whole, dict):
        raise row.error(f"{shown(whole)} where {field!r} is looked for", expected="a JSON object")
    value = whole.get(field)
    if not isinstance(value, kind):
        found = f"{field!r} is {shown(value)}" if field in whole else f"no field {field!r}"
        raise row.error(f"{found} beside {listed(whole)}", expected=_KINDS[kind])
    return value


_KINDS = {dict: "a JSON object", list: "a JSON list", int: "a whole number", str: "a text"}


@dataclass(frozen=True)
class SuperGlueTask:
    """A task, and how its official files are laid out.

    Attributes:
        task: the task.
        folder: the name of its folder in the official layout.
        flatten: what makes flat rows of those in the files.
        columns: where the flat rows keep id, label and group.
    """

    task: Task
    folder: str
    flatten: Callable[[Iterable[Row]], Iterable[Row]] = iter
    columns: Columns = Columns(id="idx")  # noqa: RUF009 - frozen


SUPERGLUE: dict[str, SuperGlueTask] = {
    entry.task.name: entry
    for entry in (
        SuperGlueTask(
            Task(
                name="boolq",
                template="boolq passage: {passage} question: {question}",
                labels=("false", "true"),
                verbalizers=("False", "True"),
                description="does the passage answer the question with yes?",
            ),
            folder="BoolQ",
        ),
        SuperGlueTask(
            Task(
                name="cb",
                template="cb hypothesis: {hypothesis} . premise: {premise}",
                labels=("entailment", "contradiction", "neutral"),
                verbalizers=("entailment", "contradiction", "neutral"),
                description="does the premise commit its author to the hypothesis?",
            ),
            folder="CB",
        ),
        SuperGlueTask(
            Task(
                name="copa",
                template="copa choice1: {choice1} choice2: {choice2} premise: {premise} "
                "question: {question}",
                labels=("0", "1"),
                verbalizers=("choice1", "choice2"),
                description="which choice is the cause or the effect of the premise?",
            ),
            folder="COPA",
        ),
        SuperGlueTask(
            Task(
                name="multirc",
                template="multirc question: {question} answer: {answer} . paragraph: {paragraph}",
                labels=("0", "1"),
                verbalizers=("False", "True"),
                metric="f1",
                description="is this answer to a question about the paragraph right?",
                may_be_empty=("answer",),  # the official train set has three empty ones
            ),
            folder="MultiRC",
            flatten=flatten_multirc,
            columns=Columns(id="idx", group="passage"),
        ),
        SuperGlueTask(
            Task(
                name="rte",
                template="rte sentence1: {premise} sentence2: {hypothesis}",
                labels=("entailment", "not_entailment"),
                verbalizers=("entailment", "not_entailment"),
                description="does the premise entail the hypothesis?",
            ),
            folder="RTE",
        ),
        SuperGlueTask(
            Task(
                name="wic",
                template="wic sentence1: {sentence1} sentence2: {sentence2} word: {word}",
                labels=("false", "true"),
                verbalizers=("False", "True"),
                description="does the word mean the same in both sentences?",
            ),
            folder="WiC",
        ),
    )
}


def load_superglue(name: str, data: Path | None) -> tuple[dict[str, Examples], dict[str, str]]:
    """Read the labelled rows of a task.

    Args:
        name: a key of `SUPERGLUE`.
        data: the folder of the benchmark or of the task; None reads from the Hugging Face hub.

    Returns:
        The examples of "train" and "validation", and where each came from.

    Raises:
        ConfigError: where the hub is needed and cannot be used.
        DataError: naming the file and the line that cannot be used.
    """
    entry = SUPERGLUE[name]
    parts, sources = {}, {}
    if data is None:
        for part, rows in read_hub(entry.task, tuple(_FILES)).items():
            parts[part] = to_examples(rows, entry.task, entry.columns)
            sources[part] = rows[0].source
        return parts, sources
    folder = _find_folder(data, entry)
    for part, file_name in _FILES.items():
        file = folder / file_name
        if not file.exists():
            here = listed(sorted(path.name for path in folder.iterdir()))
            raise DataError.at(
                file,
                None,
                f"the file is missing, the folder holds {here}",
                expected=f"the official {listed(list(_FILES.values()))} of {entry.folder}",
            )
        parts[part] = to_examples(entry.flatten(read_rows(file)), entry.task, entry.columns)
        sources[part] = str(file)
    return parts, sources


def _find_folder(data: Path, entry: SuperGlueTask) -> Path:
    files = listed(list(_FILES.values()))
    wanted = f"{data / entry.folder} with {files}"
    if not data.is_dir():
        problem = "is a file" if data.exists() else "the folder is missing"
        raise DataError.at(data, None, problem, expected=wanted)
    inside = sorted(data.iterdir())
    for path in inside:
        if path.is_dir() and path.name.lower() == entry.folder.lower():
            return path
    # `data` may be the task's own folder under any name, only not under that of another task.
    others = {other.folder.lower() for other in SUPERGLUE.values()} - {entry.folder.lower()}
    if data.resolve().name.lower() not in others and any(
        (data / name).exists() for name in _FILES.values()
    ):
        return data
    if not inside:
        raise DataError.at(data, None, "the folder is empty", expected=wanted)
    here = _some_of([path.name for path in inside])
    raise DataError.at(data, None, f"no folder {entry.folder!r} among {here}", expected=wanted)


def _some_of(names: list[str], most: int = 10) -> str:
    return listed(names[:most]) + (" and others" if len(names) > most else "")
