"""Adapters on tiny models of every kind, saved with all that an export needs."""

from pathlib import Path

import torch
from peft import get_peft_model

import tiny
from peft_smop import SMoPConfig
from peft_smop.methods import load_backbone
from peft_smop.predictor import Beside, save_beside
from peft_smop.tasks import Task

TOY = Task("toy", "{text}", ("warm", "cold"), ("warm", "cold"))
TEXTS = [
    "the cat is red number 3",
    "the owl",
    "the fox is green number 11 the hen is black number 4 the dog is blue",
    "cow cow cow",
]


def save(model: str, directory: Path, task: Task = TOY, **options) -> Path:
    """Save an adapter of drawn prompts on a model, whose router sends texts different ways."""
    loaded = load_backbone(model, labels=len(task.labels), device=torch.device("cpu"), dtype="fp32")
    adapted = get_peft_model(loaded.model, SMoPConfig(task_type=loaded.task_type, **options))
    adapter = tiny.decided(adapted).smop_layer["default"]
    if adapter.router is not None:
        _look_away_from_what_all_share(adapter, loaded)
    adapted.save_pretrained(str(directory))
    length = adapter.length
    beside = Beside(task, model, precision="fp32", prompt_length=length, max_length=48)
    save_beside(directory, beside, loaded.tokenizer)
    return directory


def _look_away_from_what_all_share(adapter, loaded):
    x = loaded.model.get_input_embeddings()
    means = [
        x(torch.tensor(loaded.tokenizer(text + "\nanswer:")["input_ids"])).mean(0) for text in TEXTS
    ]
    shared = torch.stack(means).mean(0).detach()
    shared = shared / shared.norm()
    with torch.no_grad():
        router = adapter.router
        router.copy_(2 * (router - shared[:, None] * (shared @ router)))
