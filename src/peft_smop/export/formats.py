"""The formats, and the one way to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft_smop.export.embeddings import export_embeddings
from peft_smop.export.source import Exported, new_directory
from peft_smop.names import check_format
from peft_smop.predictor.finding import Source


@dataclass(frozen=True)
class Asked:
    """What is to be exported, and to where."""

    source: Source
    place: Path
    model: str | None
    task: str | Path | None

    def load(self) -> Exported:
        """The adapter on its backbone."""
        return Exported.load(self.source, model=self.model, task=self.task)


def _embeddings(asked: Asked, directory: Path) -> dict[str, Any]:
    return export_embeddings(asked.load(), directory)


def _onnx(asked: Asked, directory: Path) -> dict[str, Any]:
    from peft_smop.export.graphs import export_onnx

    return export_onnx(asked.load(), directory)


def _lm_eval(asked: Asked, directory: Path) -> dict[str, Any]:
    from peft_smop.export.harness_task import export_task

    return export_task(
        asked.source, directory, place=asked.place, model=asked.model, task=asked.task
    )


WRITERS: Mapping[str, Callable[[Asked, Path], dict[str, Any]]] = {
    "vllm": _embeddings,
    "llama.cpp": _embeddings,
    "onnx": _onnx,
    "lm-eval": _lm_eval,
}
"""By the names in `peft_smop.names.FORMATS`."""


def export(
    source: Source,
    directory: Path,
    *,
    format: str,
    model: str | None = None,
    task: str | Path | None = None,
) -> dict[str, Any]:
    """Write an adapter for another engine.

    Args:
        source: a run's directory or an adapter's.
        directory: where to; it must not exist, or be empty.
        format: a key of `WRITERS`.
        model: the backbone; by default the one that it was trained on.
        task: for an adapter that was saved without its task.

    Returns:
        What was written of it: for "onnx" the manifest, for the others their description.

    Raises:
        SMoPError: something is missing, damaged, or not offered by the format.
    """
    check_format(format)
    with new_directory(directory) as made:
        return WRITERS[format](Asked(source, directory, model, task), made)
