"""What is written down of a run: its score, predictions and surroundings, as JSON has them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from peft_smop.lab.prepare import Prepared
from peft_smop.lab.spec import RunSpec
from peft_smop.methods import (
    ParameterCount,
    method_of,
)
from peft_smop.scoring import (
    Evaluation,
    Prediction,
)
from peft_smop.tasks import Task
from peft_smop.training import (
    Fit,
)

PACKAGES = ("peft-smop", "torch", "transformers", "peft", "accelerate")


def learning_rate(spec: RunSpec) -> float:
    """The specification's learning rate, or the first of its method's."""
    return spec.training.learning_rate or method_of(spec.method).learning_rates[0]


def predictions_as_rows(task: Task, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Predictions as JSON objects, labels by name, log-probabilities normalised over the labels."""
    rows = []
    for p in predictions:
        normalised = torch.tensor(p.log_probabilities, dtype=torch.float64).softmax(0).tolist()
        row: dict[str, Any] = {"id": p.example.id, "prediction": task.labels[p.label]}
        if p.example.label is not None:
            row["label"] = task.labels[p.example.label]
        row["probabilities"] = dict(zip(task.labels, normalised, strict=True))
        if p.prompt is not None:
            row["prompt"] = p.prompt
            row["prompt_probability"] = p.prompt_probability
        if p.example.population is not None:
            row["population"] = p.example.population
        rows.append(row)
    return rows


def result_of(
    spec: RunSpec,
    prepared: Prepared,
    fitted: Fit,
    evaluation: Evaluation,
) -> dict[str, Any]:
    """What `result.json` says of what was trained and tested; run and cost are told beside it."""
    parameters = ParameterCount.of(prepared.model)
    record = prepared.split.record()
    return {
        "task": prepared.task.name,
        "model": spec.model,
        "method": spec.method.model_dump(mode="json"),
        "seed": spec.seed,
        "test": score_as_dict(evaluation),
        "validation": {"score": fitted.best_score, "examples": len(prepared.split.validation)},
        "training": {
            "steps": fitted.steps,
            "best_step": fitted.best_step,
            "stopped_early": fitted.stopped_early,
            "learning_rate": learning_rate(spec),
            "revived_prompts": fitted.revived_prompts,
        },
        "parameters": {
            "trainable": parameters.trainable,
            "allocated": parameters.allocated,
            "backbone": parameters.backbone,
            "percentage": parameters.percentage,
        },
        "split": {part: content["sha256"] for part, content in record["parts"].items()},
        "truncated_test_inputs": prepared.formulation.truncated,
    }


def score_as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """A score for JSON, with load and alarms."""
    return {
        **asdict(evaluation.score),
        "loss": evaluation.loss,
        "load": list(evaluation.load),
        "alarms": list(evaluation.alarms),
    }


def environment() -> dict[str, str]:
    """Versions and hardware."""
    device = torch.accelerator.current_accelerator(check_available=True)
    name = torch.cuda.get_device_name() if device and device.type == "cuda" else platform.machine()
    return {
        **{package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "device": f"{device.type if device else 'cpu'} {name}",
        "threads": str(torch.get_num_threads()),
    }
