"""How a run ends: tested once, saved, and its result written last of all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor, nn

from peft_smop.costs import inference_flops
from peft_smop.lab.beginning import Begun
from peft_smop.lab.operations import training_operations
from peft_smop.lab.prepare import Prepared
from peft_smop.lab.record import environment, predictions_as_rows, score_of
from peft_smop.lab.spec import RunSpec
from peft_smop.lab.worth import examples_to_certify, routing_worth
from peft_smop.methods import ParameterCount, virtual_tokens
from peft_smop.predictor import Beside, located, model_card, save_beside
from peft_smop.results import (
    Chosen,
    Parameters,
    RoutingWorth,
    RunCost,
    RunResult,
    TrainingTold,
    write_jsonl,
    writing,
)
from peft_smop.results.files import sync
from peft_smop.results.run_directory import NOT_HASHED
from peft_smop.scoring import (
    Evaluation,
    UnderPrompts,
    answer_under_prompts,
    better_router,
    evaluate,
    majority_label,
    to_device,
    worth_keeping,
)
from peft_smop.training import Fit, bars
from peft_smop.tuner import SMoPModel
from peft_smop.tuner.refit import JudgedRows

NEIGHBOURS = (
    "rows not independent: with routing 'released' predictions depend on the other rows of a batch"
)


def finish(begun: Begun, fitted: Fit, console: Console, *, packed: int = 1) -> RunResult:
    """Test, save, and write the result.

    Raises:
        RunError: a score is not a number, or something cannot be written.
    """
    prepared, directory, spec = begun.prepared, begun.directory, begun.spec
    seconds = fitted.ended - begun.started
    if fitted.truncated:
        console.print(
            f"{fitted.truncated} of {len(prepared.train)} training inputs are longer than"
            f" {prepared.formulation.max_length} tokens and were cut"
        )
    parameters = ParameterCount.of(prepared.model)  # those that were trained
    routing = _routing(begun, console)
    evaluation = score_once(prepared, revives=spec.training.revive_dead_prompts)
    if spec.method.routing == "released":
        evaluation = replace(evaluation, alarms=(*evaluation.alarms, NEIGHBOURS))
    truncated = prepared.formulation.truncated
    _save(prepared, directory.adapter, spec)
    write_jsonl(directory.metrics, fitted.history)
    rows = predictions_as_rows(prepared.task, evaluation.predictions)
    write_jsonl(directory.predictions, rows)
    if spec.method.name == "full":  # whole models, of which a run keeps one
        shutil.rmtree(directory.checkpoints, ignore_errors=True)
    backbone = prepared.backbone.model
    result = RunResult(
        task=prepared.task.name,
        model=spec.model,
        method=spec.method.model_dump(mode="json")
        | ({"pooling": "mean"} if spec.pooled == "mean" else {}),
        seed=spec.seed,
        test=score_of(evaluation),
        validation=Chosen(score=fitted.best_score, examples=len(prepared.split.validation)),
        training=TrainingTold(
            steps=fitted.steps,
            best_step=fitted.best_step,
            stopped_early=fitted.stopped_early,
            learning_rate=fitted.learning_rate,
            recipe=spec.training.recipe,
            dropout=spec.dropout,
            revived_prompts=fitted.revived_prompts,
            seconds=round(seconds, 1),
            resumed=begun.resumed,
            packed=packed,
            continued_at=spec.continued_at,
        ),
        parameters=Parameters(
            trainable=parameters.trainable,
            allocated=parameters.allocated,
            backbone=parameters.backbone,
            percentage=parameters.percentage,
        ),
        split={
            part: content["sha256"] for part, content in prepared.split.record()["parts"].items()
        },
        truncated_test_inputs=truncated,
        routing=routing,
        cost=_cost(prepared, fitted, pruned=routing.pruned if routing else ()),
        environment={
            **environment(),
            "precision": str(backbone.dtype).removeprefix("torch."),
            "attention": str(backbone.config._attn_implementation),
        },
        files=directory.hashes(),
    )
    with writing(directory.adapter):
        card = model_card(prepared.task, result.model_dump(mode="json"))
        (directory.adapter / NOT_HASHED).write_text(card, encoding="utf-8")
    result.save(directory.result)
    return result


def score_once(prepared: Prepared, *, revives: bool) -> Evaluation:
    """Score the test examples with the state that validation chose."""
    prepared.formulation.truncated = 0
    tuner = SMoPModel.of(prepared.model)
    if tuner is not None:
        tuner.keep_texts(0)  # what is read once is read fastest together
    return evaluate(
        prepared.model,
        prepared.formulation,
        prepared.split.test,
        majority_label=majority_label([example.label for example in prepared.train]),
        revives=revives,
    )


def _routing(begun: Begun, console: Console) -> RoutingWorth | None:
    """Settle a judged router, and say what routing is worth.

    Of weights, data and seed alone, so that resumed runs agree. None: there is no router, or one
    prompt alone.
    """
    prepared = begun.prepared
    adapter = SMoPModel.adapter_of(prepared.model)
    if adapter is None or adapter.router is None:
        return None
    k = adapter.prompts.shape[0]
    if k == 1:
        return None
    validation = prepared.split.validation
    examples = examples_to_certify(validation, num_prompts=k, seed=begun.spec.seed)
    with bars(console) as progress:
        line = progress.add_task(
            "validation under every prompt", total=(k + 1) * len(examples), loss="", score=""
        )
        found = answer_under_prompts(
            prepared.model,
            prepared.formulation,
            examples,
            on_batch=lambda count: progress.advance(line, count),
        )
    refitted, pruned = False, cast("tuple[int, ...]", ())
    if adapter.strategy.judges:
        found, refitted, pruned = _settled(begun, found, console)
    return routing_worth(
        found,
        prepared.formulation,
        of=len(validation),
        refitted=refitted,
        pruned=pruned,
    )


def _settled(
    begun: Begun, found: UnderPrompts, console: Console
) -> tuple[UnderPrompts, bool, tuple[int, ...]]:
    """Fit the router to the finished prompts, and take away those that are not missed.

    Args:
        begun: the run, whose adapter is changed.
        found: answers to validation examples under every prompt.
        console: where to say how it goes.

    Returns:
        What those answers are then, whether the router is another, and which prompts are gone.
    """
    prepared, options = begun.prepared, begun.spec.training
    tuner, adapter = SMoPModel.of(prepared.model), SMoPModel.adapter_of(prepared.model)
    assert tuner is not None
    assert adapter is not None
    k, judged, matrix, kept = adapter.prompts.shape[0], None, None, None
    if options.refit_router:
        judged = _judged(begun, k, console)
        better = better_router(found, judged)
        found, matrix = better or (found, None)
    if options.prune_prompts and adapter.network is None:
        kept = worth_keeping(found)
    pruned = [] if kept is None else [j for j in range(k) if j not in kept]
    if kept is not None and pruned:
        found, matrix = found.keeping(kept), None if matrix is None else matrix[:, kept]
        tuner.keep_prompts(kept)
        if judged is not None:  # to those that are left
            better = better_router(found, judged.keeping(kept))
            found, matrix = better or (found, matrix)
    if matrix is not None:
        tuner.set_router(matrix)
    return found, matrix is not None, tuple(pruned)


def _judged(begun: Begun, k: int, console: Console) -> JudgedRows:
    """Training examples under every prompt, as many as a certificate would take."""
    prepared = begun.prepared
    examples = examples_to_certify(prepared.train, num_prompts=k, seed=begun.spec.seed)
    formulation, size = prepared.formulation, begun.spec.training.batch_size
    device = next(prepared.model.parameters()).device
    rows = sorted((formulation.encode(e) for e in examples), key=lambda f: -len(f["input_ids"]))
    parts = (rows[i : i + size] for i in range(0, len(rows), size))
    with bars(console) as progress:
        line = progress.add_task(
            "training examples under every prompt", total=len(examples), loss="", score=""
        )
        return JudgedRows.of(
            prepared.model,
            (to_device(formulation.collate(part), device) for part in parts),
            on_batch=lambda count: progress.advance(line, count),
        )


def _save(prepared: Prepared, directory: Path, spec: RunSpec) -> None:
    """The trained adapter as PEFT saves it, or, after full fine-tuning, the whole model.

    Beside it stands what answering needs, so that the directory is enough.
    """
    beside = Beside(
        prepared.task,
        located(spec.model),
        spec.training.max_length,
        spec.precision,
        virtual_tokens(spec.method),
    )
    with writing(directory):
        if directory.is_dir():  # of an attempt that was stopped here
            shutil.rmtree(directory)
        prepared.model.save_pretrained(str(directory))
        save_beside(directory, beside, prepared.backbone.tokenizer)
        for path in directory.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        sync(directory)


def _cost(prepared: Prepared, fitted: Fit, *, pruned: Sequence[int]) -> RunCost:
    """What training took; last of all, as counting takes a step of its own."""
    adapter = SMoPModel.adapter_of(prepared.model)
    trained = None if adapter is None else adapter.prompts.shape[0] + len(pruned)
    per_step, memory = fitted.seconds_per_step, fitted.peak_memory
    batch = _median_example(prepared)
    return RunCost(
        seconds_per_100_steps=None if per_step is None else 100 * per_step,
        peak_memory_mib=None if memory is None else memory / 2**20,
        training_gflops_per_example=_gflops(
            partial(training_operations, num_prompts=trained), prepared, batch
        ),
        inference_gflops_per_example=_gflops(inference_flops, prepared, batch),
    )


def _median_example(prepared: Prepared) -> dict[str, Tensor]:
    """The training example of median length, as a batch."""
    formulation = prepared.formulation
    features: list[Any] = [formulation.encode(example) for example in prepared.train]
    features.sort(key=lambda f: len(f["input_ids"]))
    device = next(prepared.model.parameters()).device
    batch = formulation.collate([features[len(features) // 2]])
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _gflops(
    count: Callable[[nn.Module, Mapping[str, Tensor]], int],
    prepared: Prepared,
    batch: Mapping[str, Tensor],
) -> float | None:
    """What is counted of a batch; None where memory does not hold it."""
    try:
        return count(prepared.model, batch) / 1e9
    except torch.OutOfMemoryError:
        return None  # a figure less, but never the run
