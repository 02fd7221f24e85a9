"""What is written down of a run: its score, predictions and surroundings, as JSON has them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from peft_smop.results import TestScore
from peft_smop.scoring import Evaluation, Prediction
from peft_smop.tasks import Task

PACKAGES = ("peft-smop", "torch", "transformers", "peft", "accelerate")


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


def score_of(evaluation: Evaluation) -> TestScore:
    """A score with load and alarms, as results have it."""
    return TestScore(
        **asdict(evaluation.score),
        loss=evaluation.loss,
        load=evaluation.load,
        alarms=evaluation.alarms,
    )


def environment() -> dict[str, str]:
    """Versions and hardware; of a CPU also its vector units, on which last digits depend."""
    device = torch.accelerator.current_accelerator(check_available=True)
    name = platform.machine()
    if device is None:
        name += f" {torch.backends.cpu.get_cpu_capability()}"
    elif device.type == "cuda":
        name = torch.cuda.get_device_name()
    return {
        **{package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "device": f"{device.type if device else 'cpu'} {name}",
        "threads": str(torch.get_num_threads()),
    }
