"""Rows of all requests share batches, whatever their adapters.

One thread computes; adapters come and go in it too, between two batches, so nothing is ever locked.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from peft_smop.errors import SMoPError
from peft_smop.predictor import Answer, Predictor
from peft_smop.serve.options import ServeOptions
from peft_smop.tasks import Example

T = TypeVar("T")
MOST_TASKS = 64
"""What may wait between batches: texts to be written, adapters to be loaded."""


class Busy(Exception):
    """More rows wait than may."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many rows wait; try again in {seconds:.0f} s")
        self.seconds = seconds


class Late(Exception):
    """A row's deadline passed before its turn came."""


@dataclass(eq=False)
class Waiting:
    """A row that waits for its answer."""

    adapter: str
    example: Example
    tokens: int
    deadline: float
    future: asyncio.Future[Answer]
    arrived: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Batch:
    """What was just computed, for those who count."""

    rows: int
    adapters: int
    seconds: float


class Batcher:
    """Gathers rows, and answers them in batches.

    Args:
        predictor: with its adapters.
        options: the limits.
        on_batch: told of every batch, in the thread that computed it.
    """

    def __init__(
        self,
        predictor: Predictor,
        options: ServeOptions,
        on_batch: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self.predictor = predictor
        self.options = options
        self.computed = 0
        """Rows computed so far; those whose client had left are not among them."""
        self._on_batch = on_batch
        self._rows: deque[Waiting] = deque()
        self._tasks: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._rate = 100.0  # rows a second, for how long those who are turned away should wait
        self._thread = threading.Thread(target=self._work, name="smop-batches", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """How many rows wait."""
        return len(self._rows)

    @property
    def has_room(self) -> bool:
        """Whether another row may be queued."""
        with self._changed:
            return self._has_room_for(1)

    @property
    def is_working(self) -> bool:
        """Whether rows are still answered."""
        return self._thread.is_alive()

    def submit(self, rows: Sequence[tuple[str, Example, int]], deadline: float) -> list[Waiting]:
        """Queue rows, all or none.

        Args:
            rows: adapter, example and tokens of each.
            deadline: by the monotonic clock.

        Raises:
            Busy: there is no room.
        """
        loop = asyncio.get_running_loop()
        made = [
            Waiting(adapter, example, tokens, deadline, loop.create_future())
            for adapter, example, tokens in rows
        ]
        with self._changed:
            if self._stopping or not self._has_room_for(len(made)):
                raise Busy(max(1.0, len(self._rows) / self._rate))
            self._rows.extend(made)
            self._changed.notify()
        return made

    def _has_room_for(self, rows: int) -> bool:
        """Whether rows may be queued beside those that somebody still waits for."""
        if len(self._rows) + rows > self.options.queue_rows:
            now = time.monotonic()
            self._rows = deque([row for row in self._rows if not _is_over(row, now)])
        return len(self._rows) + rows <= self.options.queue_rows

    async def between(self, work: Callable[[], T]) -> T:
        """Do something with the predictor between two batches.

        Raises:
            Busy: too many wait already.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._changed:
            if len(self._tasks) >= MOST_TASKS:  # nobody waits for some of them, perhaps
                self._tasks = deque([task for task in self._tasks if not task[1].cancelled()])
            if self._stopping or len(self._tasks) >= MOST_TASKS:
                raise Busy(max(1.0, float(len(self._tasks))))
            self._tasks.append((work, future))
            self._changed.notify()
        return await future

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._rows or self._tasks or self._stopping):
                    self._changed.wait()
                if self._stopping and not self._rows and not self._tasks:
                    return
                task = self._tasks.popleft() if self._tasks else None
            if task is not None:
                self._do(*task)
            batch = self._gather()
            if batch:
                self._answer(batch)

    def _gather(self) -> list[Waiting]:
        """The next rows that share a batch, in the order in which they came."""
        patience = time.monotonic() + self.options.patience_ms / 1000
        batch: list[Waiting] = []
        longest = 0
        with self._changed:
            while True:
                while self._rows and len(batch) < self.options.batch_rows:
                    row = self._rows[0]
                    most = max(longest, row.tokens)
                    if batch and most * (len(batch) + 1) > self.options.batch_tokens:
                        return batch
                    self._rows.popleft()
                    if _is_over(row, time.monotonic()):
                        continue
                    batch.append(row)
                    longest = most
                left = patience - time.monotonic()
                full = len(batch) >= self.options.batch_rows
                if not batch or full or left <= 0 or self._stopping or self._tasks:
                    return batch
                self._changed.wait(left)

    def _answer(self, batch: list[Waiting]) -> None:
        started = time.monotonic()
        loaded = self.predictor.adapters
        gone = [row for row in batch if row.adapter not in loaded]
        for row in gone:
            _settle(row.future, SMoPError(f"adapter {row.adapter!r} was unloaded meanwhile"))
        batch = [row for row in batch if row.adapter in loaded]
        if not batch:
            return
        outcomes: list[Answer | Exception]
        try:
            rows = [(row.adapter, row.example) for row in batch]
            outcomes = list(self.predictor.answer(rows, batch_size=self.options.batch_rows))
        except Exception:
            outcomes = [self._alone(row) for row in batch]  # one row's trouble is no other's
        self.computed += len(batch)
        _settle_all(batch, outcomes)
        seconds = time.monotonic() - started
        self._rate += 0.1 * (len(batch) / max(seconds, 1e-6) - self._rate)
        self._on_batch(Batch(len(batch), len({row.adapter for row in batch}), seconds))

    def _alone(self, row: Waiting) -> Answer | Exception:
        try:
            return self.predictor.answer([(row.adapter, row.example)])[0]
        except Exception as error:
            return error

    def _do(self, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        try:
            outcome = work()
        except Exception as error:
            outcome = error
        _settle(future, outcome)


def _is_over(row: Waiting, now: float) -> bool:
    """Whether nobody waits for a row any more; who still does is told that it is late."""
    if row.future.cancelled():  # the client has left
        return True
    if row.deadline < now:
        _settle(row.future, Late())
        return True
    return False


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    """Give a future of another thread its outcome, unless nobody waits for it."""
    future.get_loop().call_soon_threadsafe(_set, future, outcome)


def _settle_all(batch: Sequence[Waiting], outcomes: Sequence[Any]) -> None:
    """The same for a batch, with one call for all."""

    def settle() -> None:
        for row, outcome in zip(batch, outcomes, strict=True):
            _set(row.future, outcome)

    batch[0].future.get_loop().call_soon_threadsafe(settle)


def _set(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
