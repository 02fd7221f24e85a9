"""What methods cost on a model and a task, measured side by side; nothing is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Literal

import torch
from transformers import set_seed

from peft_smop.costs import Cost
from peft_smop.errors import ConfigError
from peft_smop.lab.lengths import SEED, SUBSTITUTE, Lengths, Order, substitute
from peft_smop.lab.metering import WARMUP, Bench, Source
from peft_smop.lab.variants import Variant, check_methods
from peft_smop.methods import (
    default_device,
    is_shape_only,
    load_backbone,
    load_tokenizer,
    random_backbone,
    virtual_tokens,
)
from peft_smop.scoring import formulate
from peft_smop.tasks import CATALOGUE, Example, Task, load_task
from peft_smop.training import TrainingOptions


@dataclass(frozen=True)
class Costing:
    """What several methods cost on one model and one task, and how that was measured."""

    task: str
    model: str
    weights: str
    """Where the backbone's weights are from."""
    backbone: int
    """Parameters of the bare model."""
    lengths: str
    """How the lengths were found."""
    mean_length: dict[str, float]
    """Tokens of a row: of its text, and with the padding of sorted and of random batches."""
    answer_length: int
    batch_size: int
    timed_order: Order
    timed_length: int
    """Tokens of every row in the batch whose time and memory were measured."""
    steps: int
    device: str
    costs: tuple[Cost, ...]


def costing(
    model: str,
    methods: Sequence[Variant],
    *,
    task: str,
    data: Path | None = None,
    tokenizer: Path | None = None,
    length: int | None = None,
    batch_size: int = 32,
    order: Order = "sorted",
    steps: int = 3,
    dtype: Literal["auto", "fp32", "bf16"] = "auto",
    on_progress: Callable[[str], None] = lambda done: None,
) -> Costing:
    """Measure what methods cost.

    Args:
        model: as for `load_backbone`; or a key of `SHAPES`, which then has random weights.
        methods: the methods.
        task: a task's name or YAML; its training rows say how long inputs are.
        data: the directory of the task's files.
        tokenizer: a directory with the tokenizer to count with, instead of the model's own.
        length: tokens of every input, instead of the task's own; no data are read then.
        batch_size: rows in a batch.
        order: whether time and memory are those of sorted or of random batches.
        steps: training steps to time for each method; with 0 time and memory are left out.
        dtype: the backbone's precision, as for `load_backbone`.
        on_progress: told what was just done, `progress_steps` times.

    Raises:
        SMoPError: anything is not as it should be.
    """
    check_methods(methods)
    for one in methods:
        if one.spec.name == "told":
            raise ConfigError(
                f"{one.name}: how many prompts it has depends on the task's sub-populations; its"
                " parameters are in the result of smop train"
            )
    definition, rows = _task(task, data, length)
    set_seed(SEED)
    source = _source(model, len(definition.labels), drawn=steps > 0)
    if tokenizer is not None:
        source = replace(source, tokenizer=load_tokenizer(tokenizer))
    lengths = _lengths(source, definition, rows, methods)
    if length is not None:
        lengths = replace(lengths, inputs=(length,) * batch_size, source="given")
    device = default_device()
    padded = {name: lengths.padded(name, batch_size) for name in ("sorted", "random")}
    means = {name: mean(n for batch in found for n in batch) for name, found in padded.items()}
    bench = Bench(source, definition, lengths, batch_size, device, dtype)
    costs = [bench.counted(one, padded, on_progress) for one in methods]
    timed_length = round(means[order])
    if steps:
        costs = bench.run(methods, costs, timed_length, steps, on_progress)
    return Costing(
        task=definition.name,
        model=model,
        weights=source.weights,
        backbone=source.model.num_parameters(),
        lengths=lengths.source,
        mean_length={"text": mean(lengths.inputs), **means},
        answer_length=lengths.answer,
        batch_size=batch_size,
        timed_order=order,
        timed_length=timed_length,
        steps=steps,
        device=device.type,
        costs=tuple(costs),
    )


def progress_steps(methods: int, steps: int) -> int:
    """How often `costing` tells of its progress."""
    return methods * (1 + (1 + WARMUP + steps if steps else 0))


def _task(task: str, data: Path | None, length: int | None) -> tuple[Task, Sequence[Example]]:
    """The task, and its training rows where their lengths are asked for."""
    if length is not None and task in CATALOGUE:
        return CATALOGUE[task].task, ()
    try:
        definition, split = load_task(task, data=data)
    except ConfigError as error:
        if data is None and task in CATALOGUE:
            raise ConfigError(f"{error}; or give --length with the tokens of an input") from error
        raise
    return definition, split.train


def _source(name: str, labels: int, *, drawn: bool) -> Source:
    if is_shape_only(name):
        kind = "random" if drawn else "none: what is counted needs no values"
        return Source(random_backbone(name, drawn=drawn), None, "SEQ_2_SEQ_LM", kind)
    found = load_backbone(name, labels=labels, device=torch.device("cpu"), dtype="fp32")
    return Source(found.model, found.tokenizer, found.task_type, "loaded")


def _lengths(
    source: Source,
    task: Task,
    rows: Sequence[Example],
    methods: Sequence[Variant],
) -> Lengths:
    limit = TrainingOptions().max_length
    longest = max(task.verbalizers, key=substitute)
    if source.tokenizer is None:
        inputs = [min(limit, substitute(row.text)) for row in rows]
        answer, words = substitute(longest), SUBSTITUTE
    else:
        put = formulate(
            task,
            source.model,
            source.tokenizer,
            task_type=source.task_type,
            max_length=limit,
            prompt_length=max(virtual_tokens(one.spec) for one in methods),
        )
        answer = len(source.tokenizer(text_target=longest)["input_ids"])
        inputs = [
            len(encoded["input_ids"]) + len(encoded.get("answer", ()))
            for encoded in map(put.encode, rows)
        ]
        words = f"the tokenizer of {source.tokenizer.name_or_path}"
    return Lengths(tuple(inputs), answer, words)
