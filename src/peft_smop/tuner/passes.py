"""Passes over lists of rows: a batch's rows, each under a prompt that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peft_smop.errors import ConfigError
from peft_smop.rows import (
    BASE,
    IGNORED_LABEL,
    RowAdapters,
    answers_only,
    calling,
    check_adapter_names,
    on_device,
    verdicts,
)
from peft_smop.tuner.admission import check_some
from peft_smop.tuner.call import PromptCall
from peft_smop.tuner.layer import SMoPLayer
from peft_smop.tuner.reading import evaluating, texts_of
from peft_smop.tuner.texts import Texts


def prompt_losses(
    layer: SMoPLayer,
    batch: Mapping[str, Any],
    *,
    adapter_names: Sequence[str] | None,
    chunk: int,
) -> Float[Tensor, "b k"]:
    """Every row's loss under each of its adapter's prompts; see `SMoPModel.prompt_losses`."""
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise ConfigError(
            "prompt_losses needs the labels of the batch, by which prompts are judged"
        )
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ConfigError(f"chunk={chunk!r} must be a whole number of at least 1 row")
    for name, value in batch.items():
        if not isinstance(value, Tensor | bool | int | float | str | None):
            raise ConfigError(
                f"prompt_losses cannot tell the rows of {name}, a {type(value).__name__}; give it"
                " tensors"
            )
    if layer.disable_adapters:
        raise ConfigError("prompt_losses needs adapters, and they are disabled")
    if adapter_names is not None:
        check_adapter_names(adapter_names, layer)
    active = layer.active_adapters
    if adapter_names is None and len(active) != 1:
        raise ConfigError(
            f"{len(active)} adapters are active ({', '.join(active)}); pass adapter_names with one"
            " name per row"
        )
    names = list(adapter_names) if adapter_names is not None else [active[0]] * len(labels)
    if len(names) != len(labels):
        raise ConfigError(f"adapter_names has {len(names)} entries for {len(labels)} rows")
    counts = [0 if name == BASE else layer[name].prompts.shape[0] for name in names]
    pairs = [(row, j) for row, count in enumerate(counts) for j in range(count)]
    losses = torch.full((len(labels), max(counts, default=0)), torch.nan, device=labels.device)
    if not pairs:
        return losses
    rows = on_device([row for row, _ in pairs], labels.device)
    routes = on_device([j for _, j in pairs], labels.device)
    own = None if adapter_names is None else [names[row] for row, _ in pairs]
    found = losses_of_rows(layer, batch, rows, routes, adapter_names=own, chunk=chunk)
    losses[rows, routes] = found.to(losses.dtype)
    return losses


def losses_of_rows(
    layer: SMoPLayer,
    batch: Mapping[str, Any],
    rows: Int[Tensor, "r"],
    routes: Int[Tensor, "r"],
    *,
    adapter_names: Sequence[str] | None,
    chunk: int,
    texts: Texts | None = None,
) -> Float[Tensor, "r"]:
    """-log p(labels) of some of a batch's rows, summed over labels, each under a prompt asked for.

    Without gradient and in evaluation mode, so that rows differ by their prompts alone.

    Args:
        layer: the adapters.
        batch: as the model takes it, with labels.
        rows: places in the batch, repeated as wanted.
        routes: a prompt for each.
        adapter_names: an adapter for each; None: the active one.
        chunk: most rows in one pass.
        texts: what was read of the batch's texts, where all prompts stand behind them; None: they
            are read here.

    Raises:
        ConfigError: there are no rows.
    """
    check_some(len(rows))
    model, count = layer.hooks.model, len(batch["labels"])
    predicts_next = layer.hooks.backbone.predicts_next
    losses = []
    with evaluating(model), torch.no_grad(), layer.unseen():
        for i in range(0, len(rows), chunk):
            own, asked = rows[i : i + chunk], routes[i : i + chunk]
            names = None if adapter_names is None else adapter_names[i : i + chunk]
            part = _rows_of(batch, own, count)
            read = _read(layer, batch, own, names) if texts is None else texts.rows(own)
            labels = part["labels"]
            narrow = answers_only(model, labels) if predicts_next else nullcontext()
            with narrow, calling(PromptCall(layer, names, routes=asked, texts=read)):
                output = model(**part)
            losses.append(row_losses(output, labels, predicts_next=predicts_next))
    return torch.cat(losses)


def row_losses(output: Any, labels: Tensor, *, predicts_next: bool) -> Float[Tensor, "b"]:
    """-log p(labels) of every row, summed over its labels.

    Raises:
        ConfigError: the head gives no distribution over labels.
    """
    logits = output.get("logits") if hasattr(output, "get") else output[1]
    if logits is None or logits.shape[-1] == 1 or labels.is_floating_point():
        raise ConfigError(
            "the head gives no distribution over labels, by which prompts could be judged"
        )
    if predicts_next and labels.dim() == 2:
        said, targets, rows = verdicts(logits, labels)
        each = nn.functional.cross_entropy(said, targets, reduction="none")
        return each.new_zeros(len(labels)).index_add(0, rows, each)
    each = nn.functional.cross_entropy(
        logits.float().flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="none",
    )
    return each.view(len(labels), -1).sum(dim=1)


def label_counts(labels: Tensor, *, predicts_next: bool) -> Float[Tensor, "b"]:
    """How many labels of each row count."""
    counted = labels[:, 1:] if predicts_next and labels.dim() == 2 else labels
    return (counted != IGNORED_LABEL).view(len(labels), -1).sum(dim=1).float()


def _rows_of(batch: Mapping[str, Any], own: Int[Tensor, "r"], count: int) -> dict[str, Any]:
    """Some of a batch's rows."""
    part = {k: value[own] if _has_rows(value, count) else value for k, value in batch.items()}
    part.pop("num_items_in_batch", None)
    return part


def _read(
    layer: SMoPLayer,
    batch: Mapping[str, Any],
    own: Int[Tensor, "r"],
    names: Sequence[str] | None,
) -> Texts | None:
    """The texts of some rows, each read once however often it is there; None: not beforehand."""
    each, where = own.unique(return_inverse=True)
    first = {row: i for i, row in reversed(list(enumerate(own.tolist())))}
    of_each = None if names is None else [names[first[row]] for row in each.tolist()]
    rows = RowAdapters.of(layer.active_adapters, of_each, len(each))
    if rows is None:
        return None
    part = _rows_of(batch, each, len(batch["labels"]))
    all_behind = layer.all_behind(rows.names)
    found = texts_of(layer, layer.hooks.backbone, part, part["labels"], all_behind=all_behind)
    return None if found is None else found.rows(where)


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count
