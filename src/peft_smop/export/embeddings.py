"""An adapter for engines that take embeddings in place of tokens, as vLLM and llama.cpp do.

DIR/embeddings.safetensors   the backbone's embedding of every token; the prompts; the router
DIR/embeddings.json          how they are used, and the SHA-256 of that file
DIR/predictor.json           the task, as beside the adapter
DIR/tokenizer.json           and its like: the tokenizer

The router reads nothing but embeddings, so that no weight of the backbone besides is needed.
`PromptedTexts` reads it.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from peft_smop.errors import ConfigError
from peft_smop.export.source import Exported
from peft_smop.predictor import save_beside
from peft_smop.results import sha256_of, write_json, writing

TENSORS, DESCRIPTION = "embeddings.safetensors", "embeddings.json"
FORMAT_VERSION = 1


def export_embeddings(exported: Exported, directory: Path) -> dict[str, Any]:
    """Write what `PromptedTexts` reads.

    Args:
        exported: an adapter of a decoder.
        directory: an empty one.

    Returns:
        The description.

    Raises:
        ConfigError: the backbone is no decoder, or the adapter trains more than prompts.
    """
    _check(exported)
    adapter, loaded = exported.adapter, exported.loaded
    embedding = exported.layer.hooks.backbone.embedding
    with torch.no_grad():
        # through the module, which may scale what its table holds
        table = embedding(torch.arange(embedding.weight.shape[0]))
        tensors = {"embedding": table, "prompts": adapter.soft_prompts(), "steps": adapter.steps}
        if adapter.router is not None:
            tensors["router"] = adapter.router_matrix()
    path = directory / TENSORS
    with writing(path):
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    strategy = adapter.strategy
    description = {
        "format_version": FORMAT_VERSION,
        "routing": exported.model.peft_config[exported.name].routing,
        "options": {one.name: getattr(strategy, one.name) for one in fields(strategy)},
        "router_scope": adapter.scope,
        "position": adapter.position,
        "max_length": exported.room,
        "sha256": {TENSORS: sha256_of(path)},
    }
    save_beside(directory, loaded.beside, loaded.formulation.tokenizer)
    write_json(directory / DESCRIPTION, description)
    return description


def _check(exported: Exported) -> None:
    if exported.predictor.kind != "CAUSAL_LM":
        raise ConfigError(
            f"the backbone is no decoder ({exported.predictor.kind}): engines that take embeddings"
            " write after them; use --format onnx"
        )
    trained = exported.model.peft_config[exported.name].modules_to_save
    if trained:
        raise ConfigError(
            f"{exported.loaded.path} trains {', '.join(trained)} besides its prompts, which an"
            " engine with the bare backbone has not; use --format onnx"
        )
