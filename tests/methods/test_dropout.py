"""Training without the backbone's own dropout."""

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM

import tiny
from peft_smop.errors import ConfigError
from peft_smop.lab import RunSpec, prepare
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


def test_a_run_may_train_without_it(toy_task, saved_models):
    spec = {"task": str(toy_task), "model": saved_models["bert"], "method": {"name": "single"}}
    with_it = prepare(RunSpec.of(spec)).model.train()
    without = prepare(RunSpec.of({**spec, "training": {"dropout": False}})).model.train()
    rates = [
        {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
        for model in (with_it, without)
    ]
    assert max(rates[0]) > 0
    assert rates[1] == {0.0}
    with pytest.raises(ConfigError, match="dropout"):
        RunSpec.of({**spec, "training": {"dropout": 0.1}})
