"""The formats, and the one way to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peft_smop.errors import unknown
from peft_smop.export.embeddings import export_embeddings
from peft_smop.export.source import Exported, new_directory
from peft_smop.predictor.finding import Source

Writer = Callable[[Exported, Path], dict[str, Any]]


def _onnx(exported: Exported, directory: Path) -> dict[str, Any]:
    from peft_smop.export.graphs import export_onnx

    return export_onnx(exported, directory)


FORMATS: Mapping[str, Writer] = {
    "vllm": export_embeddings,
    "llama.cpp": export_embeddings,
    "onnx": _onnx,
}


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
        format: a key of `FORMATS`.
        model: the backbone; by default the one that it was trained on.
        task: for an adapter that was saved without its task.

    Returns:
        What was written of it: for `onnx` the manifest, for the others the description.

    Raises:
        SMoPError: something is missing, damaged, or not offered by the format.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    with new_directory(directory) as made:
        return FORMATS[format](Exported.load(source, model=model, task=task), made)
