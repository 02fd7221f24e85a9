"""A console that shows control characters instead of obeying them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.progress import Progress
from rich.segment import Segment

# all but line ends and tabs: C0, DEL, C1, and what turns the direction of writing
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_IN_JSON = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """A text whose control characters are written as Python writes them."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def has_control(text: str) -> bool:
    """Whether a terminal would obey something in a text."""
    return _CONTROL.search(text) is not None


def json_line(row: Mapping[str, Any]) -> str:
    """A JSON object in a line that no terminal obeys; read back, it is what it was."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    return _IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@contextmanager
def counting(console: Console, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar while something lasts, where there is a terminal; gone in the end.

    Yields:
        What is told how many more are done.
    """
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task(title, total=total)
        yield lambda count: bar.advance(line, count)


class Console(rich.console.Console):
    """Rich's, for texts that come from data, names and paths."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What is printed, control characters written out; styles are none of them."""
        for segment in super().render(renderable, options):
            if segment.control or not has_control(segment.text):
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)
