"""YAML as people write it: no aliases, which can stand for more than any memory, no key twice."""

from __future__ import annotations

import re
from typing import Any

import yaml


class PlainYamlError(ValueError):
    """A text that is no such YAML; `line` is where, or None."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


class WithoutAliases(yaml.BaseLoader):
    """Refuses `*name`; to be mixed in before any of PyYAML's loaders."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Read one node.

        Raises:
            PlainYamlError: it is an alias.
        """
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise PlainYamlError(
                f"an alias, *{event.anchor}; write out what it stands for",
                event.start_mark.line + 1,
            )
        return super().compose_node(parent, index)


class _Plain(WithoutAliases, yaml.SafeLoader):
    """PyYAML's types, but 1e-4 is a number, as in JSON and in YAML 1.2."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Read one mapping.

        Raises:
            PlainYamlError: a key is there twice.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise PlainYamlError("a key that is no word", key.start_mark.line + 1)
            if key.value in seen:
                raise PlainYamlError(f"key {key.value!r} twice", key.start_mark.line + 1)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Plain.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """Read a document.

    Raises:
        PlainYamlError: it is none, or one with aliases or a key twice.
    """
    try:
        return yaml.load(text, Loader=_Plain)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "no such character is allowed"
        raise PlainYamlError(f"not YAML ({problem})", mark.line + 1 if mark else None) from error
    except RecursionError as error:
        raise PlainYamlError("nested too deeply") from error
    except PlainYamlError:
        raise
    except ValueError as error:  # a date such as 2026-99-99
        raise PlainYamlError(f"a value that cannot be ({error})") from error
