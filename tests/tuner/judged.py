"""Rows with labels, models that are trained by posterior routing, and what it finds of rows."""

import torch

from peft_smop.rows import calling
from peft_smop.tuner.call import PromptCall
from peft_smop.tuner.judging import posterior_of
from tiny import KINDS, adapted, batch, without_dropout


def labelled(name, rows=6):
    made = batch(KINDS[name], rows=rows)
    if name == "bert":
        made["labels"] = torch.arange(rows) % 2
    if name == "llama":
        made["labels"] = made["input_ids"].index_fill(1, torch.arange(4), -100)
        made["attention_mask"][:, 4:] = 1
    return made


def trained(name, judged=1.0, candidates=4, **options):
    options |= {"judged": judged, "candidates": candidates}
    return without_dropout(
        adapted(KINDS[name], routing="posterior", **{"num_prompts": 4, **options})
    ).train()


def judge(model, made, names=None):
    """What a training pass finds of its rows before it begins."""
    call = PromptCall(model.smop_layer, names, labels=made["labels"])
    with calling(call):
        return posterior_of(model.smop_layer, call, made)
