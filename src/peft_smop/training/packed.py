"""Packed runs: several trainings at once over one frozen backbone.

    run 0: Trainer ── rows ──┐                                 ┌── loss ── step, evaluate, save
    run 1: Trainer ── rows ──┼── one forward and one backward ─┼── loss ── step, evaluate, save
    run 2: Trainer ── rows ──┘       over a mixed batch        └── loss ── step, evaluate, save

Every run is an ordinary Trainer around a model of its own, with its own optimizer, schedule,
stopping and checkpoints; only the frozen weights, and the pass over them, are shared. The trainers
are coroutines: each goes on until it has rows for its next step, and when all have, their rows are
computed together by a model that holds every run's adapter, the same parameters under other names.
A run that ends leaves, and the rest go on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from greenlet import getcurrent, greenlet
from torch import nn

from peft_smop.errors import ConfigError, SMoPError
from peft_smop.training import processes
from peft_smop.training.checkpoints import complete_checkpoints
from peft_smop.training.fit import (
    Fit,
    Training,
    fit_with,
    had_ended,
    is_first_checkpoint,
    libraries_quiet,
)
from peft_smop.training.steps import Rows, forward_backward
from peft_smop.tuner import SMoPModel

Outcome = Fit | SMoPError


def fit_packed(
    trainings: Sequence[Training], *, on_end: Callable[[int, Outcome], None] | None = None
) -> list[Outcome]:
    """Train several adapters at once, each as `fit` would alone.

    Equal to separate runs up to the rounding of sums in another order, where the backbone has no
    dropout; with dropout, up to the draws. Where all runs evaluate in the same rhythm, an
    interrupted pack resumes with exactly the weights that it would have had.

    Args:
        trainings: SMoP models around equal backbones, on one task; seeds, learning rates, prompts
            and routings may differ. Equal frozen weights are shared from now on.
        on_end: called with a run's place and outcome as soon as it has ended and the others have
            saved what they had to.

    Returns:
        For every run how it went, or the error that ended it.

    Raises:
        ConfigError: these runs cannot share a pass.
    """
    joint = _joint(trainings)
    checkpoints = _checkpoints(trainings)
    max_padding = min(training.options.max_padding for training in trainings)
    hub = getcurrent()

    def member(place: int) -> Outcome:
        try:
            return fit_with(trainings[place], checkpoints[place], step=hub.switch)
        except SMoPError as error:
            return error

    outcomes: dict[int, Outcome] = {}
    waiting: dict[int, Rows] = {}

    def advance(place: int, *given: Any) -> None:
        answer = crew[place].switch(*given)
        if crew[place].dead:
            outcomes[place] = answer
        else:
            waiting[place] = answer

    def advance_all(given: dict[int, Any]) -> None:
        for place, value in given.items():
            advance(place, value)
        for place in given:
            if place in outcomes and on_end:
                on_end(place, outcomes[place])

    crew = [greenlet(member) for _ in trainings]
    with libraries_quiet():
        advance_all({place: place for place in range(len(trainings))})
        while waiting:
            together, waiting = waiting, {}
            joint.train()
            losses = forward_backward(
                joint,
                trainings[0].formulation,
                [replace(rows, adapter=_name(place)) for place, rows in together.items()],
                max_padding=max_padding,
            )
            advance_all(dict(zip(together, losses.unbind(), strict=True)))
    return [outcomes[place] for place in range(len(trainings))]


def share_backbone(first: nn.Module, other: nn.Module) -> None:
    """Let a model use another's frozen weights in place of equal ones of its own.

    Raises:
        ConfigError: they are not equal, or the other is no model whose training can be packed.
    """
    tuner = getattr(other, "base_model", None)
    if not isinstance(tuner, SMoPModel):
        raise ConfigError(
            "only adapters of the SMoP family can be packed: others cannot train on a batch of"
            " several adapters' rows; run the others one after the other"
        )
    for name in tuner.active_adapters:
        strategy = tuner.smop_layer[name].strategy
        if not strategy.rows_independent:
            raise ConfigError(
                f"routing={type(strategy).__name__.lower()!r} gives a row its neighbours' prompts,"
                " so it cannot be packed; run it alone"
            )
    theirs = dict(first.named_modules())
    for path, module in other.named_modules():
        if "original_module" in path.split("."):
            continue  # a head that was replaced by a trained one; nothing reads it
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad:
                continue
            shared = getattr(theirs.get(path), name, None)
            if shared is None or not _equal(shared, parameter):
                raise ConfigError(
                    f"packed runs share one frozen backbone, but theirs differ in {path}.{name};"
                    " run them one after the other"
                )
            setattr(module, name, shared)


def _equal(one: Any, other: Any) -> bool:
    same_kind = one.shape == other.shape and one.dtype == other.dtype
    return one is other or (same_kind and bool((one == other).all()))


def _name(place: int) -> str:
    return f"run{place}"


def _joint(trainings: Sequence[Training]) -> nn.Module:
    """A model that holds every run's adapter; its tensors are the runs' own."""
    if processes.count() > 1:
        raise ConfigError("packed runs use one process; start them without a distributed launcher")
    first = trainings[0].model
    for training in trainings:
        share_backbone(first, training.model)
    checkpointing = {training.options.gradient_checkpointing for training in trainings}
    for option in ("gradient_checkpointing", "dropout", "keep_texts"):
        if len({getattr(training.options, option) for training in trainings}) > 1:
            raise ConfigError(f"packed runs share a pass: {option} must be the same")
    if any(training.options.keep_texts for training in trainings):
        raise ConfigError("keep_texts is for runs that are trained alone; leave it out, or --pack")
    tensors = [*first.parameters(), *first.buffers()]
    joint = copy.deepcopy(first, {id(tensor): tensor for tensor in tensors})
    for place, training in enumerate(trainings):
        tuner = training.model.base_model
        joint.base_model.adopt(_name(place), tuner, tuner.active_adapters[0])
    if True in checkpointing:
        joint.gradient_checkpointing_enable()
    return joint


def _checkpoints(trainings: Sequence[Training]) -> list[Path | None]:
    """Where each run goes on: all from the same step, so that they share passes as before.

    The step is the last one at which all unfinished runs had saved; a run that saved later, before
    the others could, goes back to it.
    """
    found = [complete_checkpoints(t.output) if t.resume else {} for t in trainings]
    last = [max(steps, default=0) for steps in found]
    unfinished = [
        step
        for step, steps, training in zip(last, found, trainings, strict=True)
        if not step or not _had_ended(steps[step], training)
    ]
    common = min(unfinished, default=max(last))

    def start(step: int, steps: dict[int, Path]) -> Path | None:
        if step <= common or common in steps:
            return steps.get(min(step, common))
        # the others have none: either this one alone had saved for the first time, or they are new
        return None if common == 0 and is_first_checkpoint(steps[step]) else steps[step]

    return [start(step, steps) for step, steps in zip(last, found, strict=True)]


def _had_ended(checkpoint: Path, training: Training) -> bool:
    options = training.options
    return had_ended(checkpoint, options.patience, steps=options.planned_steps(len(training.train)))
