"""Training without the backbone's own dropout."""

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM

import tiny
from peft_smop.errors import ConfigError
from peft_smop.lab import RunSpec, prepare
from peft_smop.methods import METHODS
from peft_smop.methods.backbones import drop_nothing

FALCON = FalconConfig(  # which asks its configuration for rates in every pass
    vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
)


def dropping(name):
    """A tiny model that drops half of all that its configuration lets it drop, and its batch."""
    built = FalconForCausalLM(FALCON) if name == "falcon" else tiny.KINDS[name].model()
    config = built.config
    for key, value in vars(config).items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.5)
    torch.manual_seed(0)
    return type(built)(config)


def said(model, made):
    return model(**made).logits.sum().item()


@pytest.mark.parametrize("name", [*tiny.KINDS, "falcon"])
def test_a_model_that_drops_nothing_trains_as_it_answers(name):
    kind = tiny.KINDS["llama" if name == "falcon" else name]
    made = tiny.batch(kind)
    if kind.task_type == "SEQ_2_SEQ_LM":
        made["labels"] = made["input_ids"]
    model = dropping(name)
    answered = said(model.eval(), made)
    drops = {said(model.train(), made) for _ in range(3)} != {answered}
    assert drops or name in ("qwen2", "gemma3")  # those drop in attention alone
    drop_nothing(model)
    assert said(model.train(), made) == pytest.approx(answered, abs=1e-4)


def spec_of(toy_task, model, method, training):
    content = {"task": str(toy_task), "model": model, "method": {"name": method}}
    return RunSpec.of({**content, "training": training})


PROMPTS = ("smop", "single", "told", "prompt-tuning", "p-tuning", "prefix-tuning")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("training", "drops"),
    [
        ({}, None),
        ({"recipe": "paper"}, True),
        ({"dropout": True}, True),
        ({"dropout": False}, False),
        ({"recipe": "paper", "dropout": False}, False),
    ],
)
def test_prompts_are_trained_without_it_unless_the_recipe_is_the_paper_s(
    toy_task, saved_models, method, training, drops
):
    spec = spec_of(toy_task, saved_models["bert"], method, training)
    assert spec.dropout == (method not in PROMPTS if drops is None else drops)


@pytest.mark.parametrize("training", [{}, {"dropout": True}])
def test_a_run_s_backbone_drops_as_its_specification_says(toy_task, saved_models, training):
    spec = spec_of(toy_task, saved_models["bert"], "single", training)
    model = prepare(spec).model.train()
    rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    assert (max(rates) > 0) == spec.dropout == bool(training)


def test_it_is_on_or_off(toy_task, saved_models):
    with pytest.raises(ConfigError, match="dropout"):
        spec_of(toy_task, saved_models["bert"], "single", {"dropout": 0.1})
