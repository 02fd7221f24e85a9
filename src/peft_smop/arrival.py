"""When PEFT is imported, before this package or after it, it comes to know our methods."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

METHODS = ("peft_smop.bottleneck", "peft_smop.tuner")
"""The packages that register a method when they are imported."""
_UNDER_THEM = ("peft_smop.rows", "peft_smop.registration")


def leave_out_warnings() -> None:
    """Leave out what PEFT and transformers warn of each other at every wrap.

    PEFT reads a property that transformers has renamed; a user can do nothing about it.
    """
    warnings.filterwarnings(
        "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
    )


def when_peft_arrives() -> None:
    """Register our methods now where PEFT is imported already, and else right after it will be."""
    if "peft" in sys.modules and not _is_being_imported("peft"):
        register_methods()
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())


def register_methods() -> None:
    """Import the packages that register themselves, unless that is just being done.

    Then each of them, when it has registered its own method, brings the others.
    """
    if not any(_is_being_imported(name) for name in (*METHODS, *_UNDER_THEM)):
        for name in METHODS:
            import_module(name)


def _is_being_imported(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


class _AfterPeft(MetaPathFinder):
    """Finds nothing itself: where others find PEFT, its loader goes on to our methods.

    It stays in place, as PEFT is also looked for by those who only ask whether it is installed.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification that the other finders give of PEFT, with its loader extended."""
        if fullname != "peft":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((one for one in found if one is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                register_methods()

            vars(spec.loader)["exec_module"] = execute_and_register  # this specification's own
        return spec
