"""What is remembered during one forward or generate, per thread.

A model's hooks have to know whose rows they see. That belongs to the call, not to the model: two
threads may call one model at once, and a call may contain others (a second pass, a step of
`generate`). Calls are a stack, the innermost first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch


@dataclass(eq=False)
class Call:
    """One forward or generate: whose rows it computes."""

    owner: object
    """The adapters that it concerns: a model may call another one within its own call."""
    adapter_names: Sequence[str] | None = None
    """One name for each row; None: all rows follow the active adapter."""
    repeats: bool = True
    """Whether rows may come repeated, as beams do."""
    outer: Call | None = field(default=None, repr=False)


class _Stack(threading.local):
    top: Call | None = None


class _Traced:
    def __init__(self) -> None:
        self.top: Call | None = None


_STACK = _Stack()
_TRACED = _Traced()
"""What a compiler follows in place of the thread's own stack, which it cannot look into. Only one
thread compiles at a time, and a compiled graph has no need of it."""

C = TypeVar("C", bound=Call)


def begin(call: Call) -> None:
    """Make a call the innermost one."""
    stack = _TRACED if torch.compiler.is_compiling() else _STACK
    call.outer = stack.top
    stack.top = call


def end(call: Call) -> None:
    """Go back to what was before a call, whatever it left behind."""
    stack = _TRACED if torch.compiler.is_compiling() else _STACK
    stack.top = call.outer


def current(owner: object, kind: type[C]) -> C | None:
    """The innermost call of a kind that concerns these adapters."""
    call = _TRACED.top if torch.compiler.is_compiling() else _STACK.top
    while call is not None and not (call.owner is owner and isinstance(call, kind)):
        call = call.outer
    return call


@contextmanager
def calling(call: C) -> Iterator[C]:
    """Surround what belongs to a call."""
    begin(call)
    try:
        yield call
    finally:
        end(call)
