"""From a request's inputs to answers, within its deadline and for as long as its client stays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from peft_smop.errors import ConfigError, SMoPError
from peft_smop.predictor import Answer, Input
from peft_smop.serve.batching import Batcher, Late
from peft_smop.serve.schema import GenerateRequest
from peft_smop.serve.schema import Input as InputOfRequest

T = TypeVar("T")
COLDEST = 0.01
WRITTEN_AT_ONCE = 8
"""Inputs that are continued in one pass, which cannot be stopped once it has begun."""
Named = tuple[str | None, Input]


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


class UnknownAdapter(SMoPError):
    """An adapter that is not loaded."""


def inputs_of(request: Any, limit: int) -> list[Named]:
    """A request's inputs with their adapters.

    Raises:
        ConfigError: there are none, too many, or one is said in two ways.
    """
    if request.inputs is None:
        return [_input(request, "input")]
    if request.text is not None or request.fields is not None:
        raise ConfigError("inputs beside text or fields; give one of them")
    if not 0 < len(request.inputs) <= limit:
        raise ConfigError(f"{len(request.inputs)} inputs; expected 1 to {limit}")
    return [
        _input(one, f"input {number}", or_else=request.adapter)
        for number, one in enumerate(request.inputs, start=1)
    ]


def _input(one: InputOfRequest, place: str, or_else: str | None = None) -> Named:
    if (one.text is None) == (one.fields is None):
        raise ConfigError(f"{place}: give text or fields")
    said: Input = one.text if one.text is not None else dict(one.fields or {})
    return one.adapter or or_else, said


async def predict(
    batcher: Batcher, request: Request, inputs: Sequence[Named], timeout_ms: int | None
) -> list[Answer]:
    """Answer inputs in the batches that all requests share.

    Raises:
        SMoPError: an input cannot be used.
        Busy: too many rows wait.
        Late: the deadline passed.
        ClientLeft: nobody waits any more.
    """
    limits, predictor = batcher.options, batcher.predictor
    rows = []
    for number, (adapter, said) in enumerate(inputs, start=1):
        place = f"input {number}" if len(inputs) > 1 else "input"
        name = known(batcher, adapter)
        length = len(said) if isinstance(said, str) else sum(len(str(v)) for v in said.values())
        if length > limits.characters:
            raise ConfigError(f"{place} has {length} characters; at most {limits.characters}")
        example = predictor.example(said, name, place=place)
        rows.append((name, example, predictor.length(name, example)))
    seconds = seconds_of(batcher, timeout_ms)
    waiting = batcher.submit(rows, time.monotonic() + seconds)
    gathered = asyncio.gather(*(row.future for row in waiting))
    return await while_wanted(request, gathered, seconds)


async def generate(batcher: Batcher, request: Request, asked: GenerateRequest) -> list[str]:
    """Write after inputs.

    Raises:
        SMoPError: an input cannot be used, or the backbone writes nothing.
        Busy: the server is stopping.
        Late: the deadline passed.
        ClientLeft: nobody waits any more.
    """
    inputs = inputs_of(asked, batcher.options.inputs)
    return await write(
        batcher,
        request,
        inputs,
        tokens=asked.max_new_tokens,
        temperature=asked.temperature,
        timeout_ms=asked.timeout_ms,
    )


async def write(
    batcher: Batcher,
    request: Request,
    inputs: Sequence[Named],
    *,
    tokens: int,
    temperature: float,
    timeout_ms: int | None = None,
    raw: bool = False,
) -> list[str]:
    """Write at most so many tokens after every input; see `generate`."""
    limits = batcher.options
    if tokens > limits.new_tokens:
        raise ConfigError(f"{tokens} tokens to write; at most {limits.new_tokens}")
    if any(len(str(said)) > limits.characters for _, said in inputs):
        raise ConfigError(f"an input has more than {limits.characters} characters")
    names = [known(batcher, adapter) for adapter, _ in inputs]
    # as good as greedy below that, where a softmax would run out of numbers
    draws = temperature >= COLDEST
    drawn = {"do_sample": True, "temperature": temperature} if draws else {"do_sample": False}

    def work(first: int) -> list[str]:
        own = slice(first, first + WRITTEN_AT_ONCE)
        return batcher.predictor.generate(
            [said for _, said in inputs[own]],
            adapters=names[own],
            raw=raw,
            max_new_tokens=tokens,
            **drawn,
        )

    async def written() -> list[str]:
        texts: list[str] = []
        for first in range(0, len(inputs), WRITTEN_AT_ONCE):  # others' batches come in between
            texts += await batcher.between(partial(work, first))
        return texts

    return await while_wanted(request, written(), seconds_of(batcher, timeout_ms))


def known(batcher: Batcher, adapter: str | None) -> str:
    """An adapter's name, where it is loaded, or the only one's.

    Raises:
        UnknownAdapter: it is not.
        ConfigError: none is named, and there are several.
    """
    loaded = batcher.predictor.adapters
    if adapter is None:
        if len(loaded) > 1:
            raise ConfigError(f"{len(loaded)} adapters are loaded; name one")
        return next(iter(loaded))
    if adapter not in loaded:
        raise UnknownAdapter(f"no adapter {adapter!r} is loaded; GET /v1/adapters lists them")
    return adapter


def seconds_of(batcher: Batcher, timeout_ms: int | None) -> float:
    """How long a request may wait."""
    longest = batcher.options.deadline_s
    return longest if timeout_ms is None else min(longest, timeout_ms / 1000)


async def while_wanted(request: Request, work: Awaitable[T], seconds: float) -> T:
    """Wait for work until its deadline, and only while the client does.

    Raises:
        Late: the deadline passed.
        ClientLeft: the client has left; the work is cancelled where it has not begun.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request.receive))
    try:
        done, _ = await asyncio.wait(
            (working, leaving), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if working in done:
            return working.result()
        raise ClientLeft if leaving in done else Late
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
