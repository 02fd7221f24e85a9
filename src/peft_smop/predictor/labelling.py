"""Rows of files and streams in, rows with answers out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any, TypeVar

from peft_smop.errors import ConfigError, DataError
from peft_smop.predictor.predictor import Predictor
from peft_smop.scoring.classes import ClassScore, class_scores
from peft_smop.tasks import Broken, Example, Row, Task, is_null, to_input

T = TypeVar("T")
PASSES = 16
"""Passes whose rows are sorted by length together, where all rows are there."""


@dataclass
class Tally:
    """What was seen so far."""

    rows: int = 0
    bad: int = 0
    abstained: int = 0
    truncated: int = 0
    truth: list[int] = field(default_factory=list)
    given: list[int | None] = field(default_factory=list)
    strange: Counter[str] = field(default_factory=Counter)
    """Values of the true label's field that are none of the task's labels."""

    def scores(self, task: Task) -> list[ClassScore]:
        """Class by class, over the rows whose label is known."""
        return class_scores(self.truth, self.given, task.labels)


@dataclass(frozen=True)
class Bad:
    """A row that has no answer."""

    number: int
    reason: str
    content: Any

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"row": self.number, "error": self.reason, "content": self.content}


@dataclass(frozen=True)
class Labelling:
    """How rows are answered.

    Attributes:
        predictor: with one adapter.
        threshold: the probability below which no label is given.
        label: the field with the true label, where rows have it.
        prefix: before the names of what is added.
        skip_bad: whether rows that cannot be used are passed over.
        batch_size: rows in a pass.
        nested: whether the probabilities are one value, or one for each label.
    """

    predictor: Predictor
    threshold: float = 0.0
    label: str = "label"
    prefix: str = ""
    skip_bad: bool = False
    batch_size: int = 32
    nested: bool = True

    def run(
        self, groups: Iterable[Sequence[Row | Broken]], tally: Tally
    ) -> Iterator[dict[str, Any] | Bad]:
        """Answer rows, in their order.

        Args:
            groups: rows that are there at the same time.
            tally: is kept up.

        Raises:
            DataError: a row cannot be used, and bad ones are not skipped.
            ConfigError: a row has a field of a name that is added.
        """
        (name,) = self.predictor.adapters
        task = self.predictor.task(name)
        for group in groups:
            checked = [self._checked(row, task) for row in group]
            good = [example for example in checked if isinstance(example, Example)]
            answers = iter(
                self.predictor.answer([(name, e) for e in good], batch_size=self.batch_size)
            )
            for row, example in zip(group, checked, strict=True):
                tally.rows += 1
                if isinstance(example, Bad) or isinstance(row, Broken):
                    tally.bad += 1
                    yield example if isinstance(example, Bad) else self._bad(row)
                    continue
                answer = next(answers)
                sure = answer.confidence >= self.threshold
                tally.abstained += not sure
                tally.truncated += answer.truncated
                true = row.fields.get(self.label)
                known = None if is_null(true) else task.label_index(true)
                if known is None and not is_null(true) and str(true).strip():
                    tally.strange[str(true)] += 1
                if known is not None:
                    tally.truth.append(known)
                    tally.given.append(task.labels.index(answer.label) if sure else None)
                said = answer.as_dict() | {"confidence": answer.confidence}
                if not sure:
                    said["prediction"] = None
                if not self.nested:
                    each = said.pop("probabilities").items()
                    said |= {f"probability_{label}": value for label, value in each}
                yield {**row.fields, **self._named(said, row)}

    def _checked(self, row: Row | Broken, task: Task) -> Example | Bad:
        try:
            if isinstance(row, Broken):
                raise row.error
            return to_input(row, task)
        except DataError as error:
            if not self.skip_bad:
                raise
            content = row.content if isinstance(row, Broken) else dict(row.fields)
            return Bad(row.number, str(error), content)

    def _bad(self, row: Row | Broken) -> Bad:
        return Bad(row.number, "is no row", None)

    def _named(self, said: dict[str, Any], row: Row) -> dict[str, Any]:
        named = {self.prefix + key: value for key, value in said.items()}
        taken = next((key for key in named if key in row.fields), None)
        if taken is not None:
            raise ConfigError(
                f"{row.source} has a column {taken!r} already; give --prefix, such as smop_"
            )
        return named


def groups_of(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Rows that are all there, in groups."""
    return (rows[begin : begin + size] for begin in range(0, len(rows), size))


def as_they_come(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """Rows of a stream, in groups of those that have come while the last group was answered.

    Args:
        rows: read in a thread of their own.
        size: most rows of a group.
    """
    queue: Queue[T | BaseException | None] = Queue(maxsize=2 * size)

    def read() -> None:
        try:
            for row in rows:
                queue.put(row)
            queue.put(None)
        except BaseException as error:
            queue.put(error)

    threading.Thread(target=read, daemon=True).start()
    ended: BaseException | None = None
    is_open = True
    while is_open:
        group: list[T] = []
        item = queue.get()
        while True:
            if item is None or isinstance(item, BaseException):
                ended, is_open = item, False
                break
            group.append(item)
            if len(group) == size:
                break
            try:
                item = queue.get_nowait()
            except Empty:
                break
        if group:
            yield group
    if ended is not None:
        raise ended
