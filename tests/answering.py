"""Adapters on the packaged model that answer, without a training: prompts and routers by a seed."""

from pathlib import Path

import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model

from peft_smop import SMoPConfig
from peft_smop.methods import load_backbone
from peft_smop.predictor import Beside, save_beside
from peft_smop.tasks import Task

MOOD = Task("mood", "{text}", ("good", "bad"), ("good", "bad"))
PAIR = Task("pair", "{one} and {two}", ("s", "o", "l"), ("same", "other", "linked"))
TEXTS = [
    "the miller carried the heavy basket to the market",
    "a dog",
    "she was very glad about the warm bread and the quiet evening at the river",
    "nobody came to the gate",
    "it rained on the old bridge, and the guard went home",
]


def backbone():
    return load_backbone("embedded", labels=2, device=torch.device("cpu"))


def save_adapter(
    directory: Path,
    seed: int,
    task: Task = MOOD,
    *,
    plain: bool = False,
    beside: bool = True,
    **more,
) -> Path:
    """Save an adapter whose prompts are drawn by a seed and whose router decides."""
    loaded = backbone()
    config = (
        PromptTuningConfig(
            task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, num_transformer_submodules=1
        )
        if plain
        else SMoPConfig(task_type="SEQ_2_SEQ_LM", **{"num_virtual_tokens": 3, **more})
    )
    model = get_peft_model(loaded.model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name or "prompt" in name:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(_deciding(drawn, loaded) if "router" in name else drawn)
    assert isinstance(model, PeftModel)
    model.save_pretrained(str(directory))
    if beside:
        save_beside(directory, Beside(task, "embedded", prompt_length=3), loaded.tokenizer)
    return directory


def _deciding(router, loaded):
    """A router that looks away from what all texts share, so that their routes differ."""
    ids = loaded.tokenizer(" ".join(TEXTS), return_tensors="pt")["input_ids"]
    shared = loaded.model.get_input_embeddings()(ids).mean(dim=(0, 1))
    shared = shared / shared.norm()
    return 2 * (router - shared[:, None] * (shared @ router))
