"""An adapter with its backbone as ONNX graphs, each compared with the model before it is kept.

DIR/manifest.json    inputs, outputs, labels, how far the graphs were seen to differ, SHA-256 of all
DIR/*.onnx           see `modules.py`
DIR/tokenizer.json   and its like: the tokenizer
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peft_smop.errors import ExportError
from peft_smop.export.modules import BATCH, GRAPHS, LENGTH, SLOTS, WRITTEN, Graph
from peft_smop.export.source import Exported
from peft_smop.results import sha256_of, write_json, writing

TOLERANCE = 1e-4
"""How far a graph's numbers may be from the model's, in parts of the largest of them, or of 1."""
SHAPES = ((1, 1), (1, 5), (2, 9), (3, 7), (7, 20), (16, 33))
"""Rows and tokens of the batches on which graphs are compared with the model."""
TRACED = (3, 7)
MOST = 2**20
"""Rows, or tokens of a row: what the exporter may take for granted."""
MANIFEST = "manifest.json"
FORMAT_VERSION = 1


def export_onnx(exported: Exported, directory: Path) -> dict[str, Any]:
    """Write an adapted model's graphs, in fp32, and what they are to be given.

    Args:
        exported: an adapter; its model is cast to fp32.
        directory: an empty one.

    Returns:
        The manifest.

    Raises:
        ExportError: the exporter fails, or a graph differs from the model.
    """
    model = exported.model.float().eval()
    graphs: dict[str, Any] = {}
    worst = 0.0
    batches = [_batch(exported, rows, tokens) for rows, tokens in _shapes(exported)]
    for name, kind in GRAPHS[exported.predictor.kind].items():
        graph = kind(model).eval()
        path = directory / f"{name}.onnx"
        given = [{key: batch[key] for key in kind.inputs} for batch in batches]
        opset = _write(graph, given[SHAPES.index(TRACED)], exported.adapter.length, path)
        exported.layer.last = None  # what is left of the tracing
        found = [_said(graph, one) for one in given]
        worst = max(worst, _compare(path, kind, given, found))
        for batch, said in zip(batches, found, strict=True):
            batch.update(said)  # a decoder reads the states of the encoder before it
        graphs[path.name] = {"inputs": _described(kind), "outputs": list(kind.outputs)}
    formulation = exported.loaded.formulation
    with writing(directory):
        formulation.tokenizer.save_pretrained(str(directory))
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": exported.predictor.kind,
        "graphs": graphs,
        "opset": opset,
        "precision": "fp32",
        "template": formulation.task.template,
        "cue": formulation.cue,
        "labels": list(formulation.task.labels),
        "answers": [list(answer) for answer in formulation.answers],
        "max_length": exported.room,
        "virtual_tokens": exported.adapter.length,
        "checked": {"largest_difference": worst, "batches": [list(s) for s in _shapes(exported)]},
        "sha256": {p.name: sha256_of(p) for p in sorted(directory.iterdir())},
    }
    start = getattr(model.config, "decoder_start_token_id", None)
    if exported.predictor.kind == "SEQ_2_SEQ_LM":
        manifest["decoder_start_token_id"] = start
    write_json(directory / MANIFEST, manifest)
    return manifest


def _shapes(exported: Exported) -> list[tuple[int, int]]:
    return [(rows, min(tokens, exported.room)) for rows, tokens in SHAPES]


def _batch(exported: Exported, rows: int, tokens: int) -> dict[str, Tensor]:
    """Random rows of several lengths, padded as scoring pads them: a text, two tokens after it."""
    generator = torch.Generator().manual_seed(rows * 1000 + tokens)
    vocabulary = exported.layer.hooks.backbone.embedding.weight.shape[0]
    ids = torch.randint(vocabulary, (rows, tokens), generator=generator)
    lengths = torch.randint(1, tokens + 1, (rows, 1), generator=generator)
    lengths[0] = tokens
    columns = torch.arange(tokens)[None]
    mask = (columns < lengths).long()
    padding = exported.loaded.formulation.tokenizer.pad_token_id or 0
    text = columns < (lengths - 2).clamp(min=1)
    return {
        "input_ids": ids.masked_fill(mask == 0, padding),
        "attention_mask": mask,
        "text_mask": text.long(),
        "decoder_input_ids": torch.randint(vocabulary, (rows, 1 + tokens % 4), generator=generator),
    }


def _write(graph: Graph, given: Mapping[str, Tensor], prompt: int, path: Path) -> int:
    """Trace a graph and write it; its opset."""
    import onnx

    rows = torch.export.Dim(BATCH, min=1, max=MOST)
    tokens = torch.export.Dim(LENGTH, min=1, max=MOST)
    axes = {
        BATCH: rows,
        LENGTH: tokens,
        WRITTEN: torch.export.Dim(WRITTEN, min=1, max=MOST),
        SLOTS: tokens + prompt,
    }
    dynamic = {
        key: {place: axes[axis] for place, axis in enumerate(names)}
        for key, names in graph.inputs.items()
    }
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                graph,
                kwargs=dict(given),
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                verbose=False,
            )
            assert program is not None
        with writing(path):
            program.save(path)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise ExportError(
            f"the exporter of torch {torch.__version__} cannot trace this model: {reason}"
        ) from error
    sets = onnx.load(str(path), load_external_data=False).opset_import
    return next(one.version for one in sets if one.domain in ("", "ai.onnx"))


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of itself: of libraries it does not need, of its own deprecations."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@torch.no_grad()
def _said(graph: Graph, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    said = graph(**given)
    return dict(zip(graph.outputs, said if isinstance(said, tuple) else (said,), strict=True))


def _compare(
    path: Path,
    kind: type[Graph],
    given: list[dict[str, Tensor]],
    expected: list[dict[str, Tensor]],
) -> float:
    """The largest difference between a graph and the model.

    Raises:
        ExportError: it is above the tolerance.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch, said in zip(given, expected, strict=True):
        found = session.run(
            list(kind.outputs), {key: value.numpy() for key, value in batch.items()}
        )
        for name, one in zip(kind.outputs, found, strict=True):
            own, other = said[name].numpy(), np.asarray(one)
            if name == "logits" and "text_mask" in batch:  # what padding says is anyone's guess
                kept = batch["attention_mask"].numpy() != 0
                own, other = own[kept], other[kept]
            difference = np.abs(own.astype(np.float64) - other)
            if not difference.max() <= TOLERANCE * max(1.0, float(np.abs(own).max())):
                rows, tokens = batch[next(iter(kind.inputs))].shape
                raise ExportError(
                    f"{path.name}: {name} of {rows} rows of {tokens} tokens differ from the"
                    f" model's by {difference.max():.3g}; expected at most {TOLERANCE:g} of"
                    " the largest, so nothing was kept"
                )
            worst = max(worst, float(difference.max()))
    return worst


def _described(kind: type[Graph]) -> dict[str, list[str]]:
    return {name: list(axes) for name, axes in kind.inputs.items()}
