"""What a task is: a template, labels with verbalizers, the name of a metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import NamedTuple

from peft_smop.errors import ConfigError, unknown
from peft_smop.tasks.reading import is_null, plain

METRICS = ("accuracy", "f1")
"""`f1` is the binary F1 of the positive class, which is the last label; `scoring` computes both."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row, ready for the model.

    Attributes:
        id: unique within its part of the split.
        text: the rendered template.
        label: index into the task's labels; None where unlabelled.
        group: rows of one group are never separated by a split (MultiRC: the passage).
        population: the sub-population a row is known to come from, for looking at routes.
    """

    id: str
    text: str
    label: int | None
    group: str | None = None
    population: str | None = None


class _Piece(NamedTuple):
    literal: str
    field: str | None


@dataclass(frozen=True)
class Task:
    """Text in, verbalizer out.

    Attributes:
        name: as given on the command line.
        template: fields in braces, such as `"rte sentence1: {premise} sentence2: {hypothesis}"`.
        labels: as they stand in the files, written as strings (JSON's `true` is "true").
        verbalizers: what the model answers, in the order of `labels`.
        metric: one of `METRICS`.
        description: one line for people.
        may_be_empty: fields that the data leave empty here and there; any other must hold text.

    Raises:
        ConfigError: where the parts do not fit each other.
    """

    name: str
    template: str
    labels: tuple[str, ...]
    verbalizers: tuple[str, ...]
    metric: str = "accuracy"
    description: str = ""
    may_be_empty: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS)
        if len(self.labels) < 2 or len(self.labels) != len(self.verbalizers):
            raise ConfigError(
                f"labels {self.labels} with verbalizers {self.verbalizers}; give at least two "
                "labels and one verbalizer for each"
            )
        if not all(verbalizer.strip() for verbalizer in self.verbalizers):
            raise ConfigError(f"an empty verbalizer in {self.verbalizers}; give it a text")
        for kind, names in (
            ("label", [_label_key(label) for label in self.labels]),
            ("verbalizer", list(self.verbalizers)),
        ):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ConfigError(f"{kind} {twice!r} stands for two things; give each its own")
        if self.metric == "f1" and len(self.labels) != 2:
            raise ConfigError(
                f"metric='f1' is that of the last of two labels, but there are {len(self.labels)}; "
                "use metric='accuracy'"
            )
        if not self.fields:
            raise ConfigError(f"template {self.template!r} has no field in braces; add one")
        strangers = [field for field in self.may_be_empty if field not in self.fields]
        if strangers:
            raise unknown("field of the template", strangers[0], self.fields)

    @cached_property
    def _pieces(self) -> tuple[_Piece, ...]:
        try:
            parsed = list(Formatter().parse(self.template))
        except ValueError as error:
            raise ConfigError(
                f"template {self.template!r}: {str(error).lower()}; write a brace itself twice"
            ) from error
        for _, field, specification, conversion in parsed:
            if field == "" or specification or conversion:
                raise ConfigError(
                    f"template {self.template!r}: a pair of braces holds a field's name and "
                    "nothing else"
                )
        return tuple(_Piece(literal, field) for literal, field, _, _ in parsed)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The names in braces, each once, in the order of the template."""
        return tuple(dict.fromkeys(field for _, field in self._pieces if field is not None))

    @cached_property
    def _index_by_key(self) -> dict[str, int]:
        return {_label_key(label): index for index, label in enumerate(self.labels)}

    def render(self, fields: Mapping[str, object]) -> str:
        """Fill the template; values are taken as they are, braces in them included.

        Raises:
            KeyError: where a field of the template is absent.
        """
        return "".join(
            literal + (str(fields[field]) if field is not None else "")
            for literal, field in self._pieces
        )

    def label_index(self, value: object) -> int | None:
        """Return the index of a label as read from a file, or None where it is not one of ours."""
        return None if is_null(value) else self._index_by_key.get(_label_key(value))


def _label_key(value: object) -> str:
    """Write a label the same way whether JSON, CSV, Parquet or YAML held it.

    JSON writes true, Python's CSV writer True; pandas writes 1 as 1.0 beside a missing value.
    """
    text = plain(value).strip()
    return text.lower() if text.lower() in ("true", "false") else text
