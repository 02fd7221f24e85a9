"""Training passes take the attention that is fastest, evaluations the one that answers later."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close

import tiny
from peft_smop import SMoPConfig
from peft_smop.costs import inference_flops
from peft_smop.lab import RunSpec, prepare
from peft_smop.scoring import evaluate
from peft_smop.training import Rows, fastest_attention, forward_backward


def attention_of(model):
    return model.config._attn_implementation


@pytest.mark.parametrize(
    ("dtype", "attention", "tokens", "within"),
    [
        (torch.bfloat16, "sdpa", 128, "eager"),
        (torch.bfloat16, "sdpa", 129, "sdpa"),
        (torch.float32, "sdpa", 8, "sdpa"),
        (torch.bfloat16, "eager", 129, "eager"),
    ],
)
@pytest.mark.parametrize("wrapped", ["bare", "lora", "smop"])
def test_short_rows_train_with_eager_attention_in_bf16_on_a_cpu(
    dtype, attention, tokens, within, wrapped
):
    kind = tiny.KINDS["llama"]
    base = kind.model().to(dtype)
    base.set_attn_implementation(attention)
    model = base
    if wrapped == "lora":
        model = get_peft_model(base, LoraConfig(task_type=kind.task_type))
    elif wrapped == "smop":
        model = get_peft_model(base, SMoPConfig(task_type=kind.task_type))
    with fastest_attention(model, tokens):
        assert attention_of(base) == within
    assert attention_of(base) == attention
    with pytest.raises(KeyError), fastest_attention(model, tokens):
        raise KeyError
    assert attention_of(base) == attention


@pytest.mark.parametrize("backbone", ["llama", "t5", "bert"])
@pytest.mark.parametrize("method", [{"name": "lora"}, {"name": "smop", "routing": "posterior"}])
def test_a_step_s_passes_are_eager_and_an_evaluation_s_are_not(
    toy_task, saved_models, backbone, method
):
    spec = {"task": str(toy_task), "model": saved_models[backbone], "method": method}
    prepared = prepare(RunSpec.of({**spec, "training": {"precision": "bf16"}}))
    model, formulation = prepared.model.train(), prepared.formulation
    base, seen = prepared.backbone.model, []
    base.register_forward_pre_hook(lambda *_: seen.append(attention_of(base)))
    rows = [Rows([formulation.encode(example) for example in prepared.train[:4]])]
    forward_backward(model, formulation, rows, max_padding=9.0)
    assert set(seen) == {"eager"}
    seen.clear()
    evaluate(model, formulation, prepared.split.validation, majority_label=0)
    assert set(seen) == {"sdpa"}


@pytest.mark.parametrize("name", tiny.KINDS)
def test_either_attention_says_and_costs_the_same(name):
    kind = tiny.KINDS[name]
    model = kind.model().eval()
    made = tiny.batch(kind)
    said, cost = {}, {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        assert model.config._attn_implementation == attention
        said[attention] = model(**made).logits
        cost[attention] = inference_flops(model, made)
    where = made["attention_mask"].bool() if kind.task_type == "CAUSAL_LM" else ...
    assert_close(said["eager"][where], said["sdpa"][where], atol=1e-5, rtol=1e-4)
    assert cost["eager"] == cost["sdpa"]
