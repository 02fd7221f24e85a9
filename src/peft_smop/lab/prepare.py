"""What a run is made of: its data, its model, and how one is put to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from peft import TaskType
from torch import nn
from transformers import set_seed

from peft_smop.errors import ConfigError, RunError
from peft_smop.lab.spec import RunSpec
from peft_smop.methods import (
    LoadedBackbone,
    Setting,
    build,
    configure,
    declared_pooling,
    load_backbone,
    method_of,
    virtual_tokens,
)
from peft_smop.scoring import (
    Formulation,
    formulate,
)
from peft_smop.tasks import Example, Split, Task, load_task
from peft_smop.tuner import reads_first


@dataclass(frozen=True)
class Prepared:
    """A run ready to train: data, model, and how one is put to the other."""

    task: Task
    split: Split
    train: Sequence[Example]
    """The split's training examples, or as many of them as were asked for."""
    backbone: LoadedBackbone
    pooling: Literal["own", "mean"]
    """What a classification head reads."""
    model: nn.Module
    formulation: Formulation


def prepare(spec: RunSpec) -> Prepared:
    """Load the data and the model, data first: they fail faster.

    Raises:
        SMoPError: anything in the specification is not as it should be.
    """
    task, split = load_task_of(spec)
    configure(spec.method, Setting(None, task.verbalizers, spec.model, spec.seed))
    train = training_examples(split, spec)
    populations = populations_of(spec, train)
    # heads and PEFT's own prompts start from torch's global generator
    set_seed(spec.seed)
    backbone = load_backbone(
        spec.model,
        labels=len(task.labels),
        dtype=spec.loaded_in or spec.precision,
        dropout=spec.dropout,
    )
    formulation = put(task, backbone, spec)
    formulation.populations = populations
    pooling = _pooling(spec, backbone)
    setting = Setting(
        TaskType(backbone.task_type),
        task.verbalizers,
        backbone.tokenizer.name_or_path,
        spec.seed,
        steps=spec.training.planned_steps(len(train)),
        populations=len(populations),
        pooling=pooling,
    )
    model = build(backbone.model, spec.method, setting)
    return Prepared(task, split, train, backbone, pooling, model, formulation)


def meant(spec: RunSpec, backbone: LoadedBackbone) -> Literal["own", "mean"]:
    """What a head under a run's prompts is to read, as the backbone's authors trained it.

    Of methods that change weights, what `[CLS]` gathers changes with them.

    Raises:
        CheckpointError: what they say is damaged, or cannot be had now.
    """
    if not _takes_pooling(spec) or backbone.task_type != "SEQ_CLS":
        return "own"
    # a head of another kind may be as they meant it already, whatever they say
    is_mean = reads_first(backbone.model) and declared_pooling(spec.model) == "mean"
    return "mean" if is_mean else "own"


def _pooling(spec: RunSpec, backbone: LoadedBackbone) -> Literal["own", "mean"]:
    """What a run's head reads: as was asked for, as it was begun, or by its recipe."""
    if not _takes_pooling(spec):
        return "own"
    by_recipe = spec.training.recipe == "default"
    return spec.method.pooling or spec.pooled or (meant(spec, backbone) if by_recipe else "own")


def _takes_pooling(spec: RunSpec) -> bool:
    return "pooling" in method_of(spec.method).options


def load_task_of(spec: RunSpec) -> tuple[Task, Split]:
    """A specification's task and data, divided as it says."""
    return load_task(spec.task, data=spec.data, preset=spec.preset, seed=spec.seed)


def put(task: Task, backbone: LoadedBackbone, spec: RunSpec) -> Formulation:
    """How the run puts its task to its backbone."""
    return formulate(
        task,
        backbone.model,
        backbone.tokenizer,
        task_type=backbone.task_type,
        max_length=spec.training.max_length,
        prompt_length=virtual_tokens(spec.method),
    )


def training_examples(split: Split, spec: RunSpec) -> Sequence[Example]:
    """The training examples; fewer where the specification says so.

    Raises:
        RunError: a part of the split is empty.
    """
    for name in ("train", "validation", "test"):
        if not getattr(split, name):
            raise RunError(
                f"task {spec.task!r} has no {name} examples; a run needs all three parts"
            )
    if spec.train_examples is None or spec.train_examples >= len(split.train):
        return split.train
    order = np.random.default_rng(spec.seed).permutation(len(split.train))[: spec.train_examples]
    return [split.train[i] for i in sorted(order)]


def populations_of(spec: RunSpec, train: Sequence[Example]) -> tuple[str, ...]:
    """The sub-populations that a method is told of; empty for the others.

    Raises:
        ConfigError: the task names none.
    """
    if spec.method.name != "told":
        return ()
    named = {example.population for example in train}
    if None in named:
        raise ConfigError(
            f"the task {spec.task!r} names no sub-populations, of which method 'told' is told;"
            " give its rows a population, or choose another method"
        )
    return tuple(sorted(str(name) for name in named))
