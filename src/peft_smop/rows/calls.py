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

from peft_smop.errors import ConfigError


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

    @property
    def says_something(self) -> bool:
        """Whether a pass within has to know of it."""
        return self.adapter_names is not None


class _Stack(threading.local):
    top: Call | None = None


class _Traced:
    def __init__(self) -> None:
        self.top: Call | None = None
        self.around = 0
        """How many calls outside of any graph say something that a graph would have to know."""


_STACK = _Stack()
_TRACED = _Traced()
"""What a compiler follows in place of the thread's own stack, which it cannot look into. It guards
on `around`, so that no graph runs within a context that it would not notice."""
_COUNTING = threading.Lock()

C = TypeVar("C", bound=Call)


def begin(call: Call) -> None:
    """Make a call the innermost one."""
    if torch.compiler.is_compiling():
        call.outer, _TRACED.top = _TRACED.top, call
        return
    call.outer, _STACK.top = _STACK.top, call
    if call.says_something:
        with _COUNTING:
            _TRACED.around += 1


def end(call: Call) -> None:
    """Go back to what was before a call, whatever it left behind."""
    if torch.compiler.is_compiling():
        _TRACED.top = call.outer
        return
    left = _STACK.top
    while left is not None and left is not call.outer:
        if left.says_something:
            with _COUNTING:
                _TRACED.around -= 1
        left = left.outer
    _STACK.top = call.outer


def current(owner: object, kind: type[C]) -> C | None:
    """The innermost call of a kind that concerns these adapters.

    Raises:
        ConfigError: it is asked for in a compiled graph, and calls around the graph matter.
    """
    compiling = torch.compiler.is_compiling()
    if compiling and _TRACED.around:
        raise ConfigError(
            "a compiled model does not know of what surrounds it (routed, forced_prompt,"
            " terms_apart, prompt_losses, adapter_names given outside); compile the PEFT model, not"
            " the model inside, and use contexts with the model that is not compiled"
        )
    call = _TRACED.top if compiling else _STACK.top
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
