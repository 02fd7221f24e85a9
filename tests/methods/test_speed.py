"""Precision and attention of a backbone, by what its device is fast at."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import tiny
from peft_smop.costs import inference_flops
from peft_smop.lab import RunSpec, prepare
from peft_smop.methods import choose_attention, load_backbone, precision

CPU = torch.device("cpu")
LARGE, SMALL = 50_000_000, 49_999_999


@pytest.mark.parametrize(
    ("units", "parameters", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, LARGE, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, LARGE, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": True}, SMALL, torch.float32),
        ({"amx_bf16": False, "avx512_bf16": False}, LARGE, torch.float32),
        ({"avx512_f": True}, LARGE, torch.float32),
        ({}, LARGE, torch.float32),
    ],
)
def test_large_backbones_are_bf16_on_a_cpu_that_has_units_for_it(
    monkeypatch, units, parameters, dtype
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert precision("auto", CPU, parameters) == dtype
    assert precision("fp32", CPU, parameters) == torch.float32
    assert precision("bf16", CPU, parameters) == torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "attention", "longest", "chosen"),
    [
        (torch.bfloat16, "sdpa", 128, "eager"),
        (torch.bfloat16, "sdpa", 129, "sdpa"),
        (torch.float32, "sdpa", 8, "sdpa"),
        (torch.bfloat16, "eager", 200, "eager"),
    ],
)
def test_short_inputs_train_with_eager_attention_in_bf16(dtype, attention, longest, chosen):
    config = tiny.KINDS["llama"].model().config
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype)
    choose_attention(model, longest)
    assert model.config._attn_implementation == chosen


def backbone_of(toy_task, model, **training):
    method = {"name": "single", **training.pop("method", {})}
    spec = {"task": str(toy_task), "model": model, "method": method, "training": training}
    return prepare(RunSpec.of(spec)).backbone.model


def test_virtual_tokens_count_where_a_run_chooses_its_attention(toy_task):
    of_run = backbone_of(toy_task, "embedded", precision="bf16")
    assert of_run.config._attn_implementation == "eager"
    long = backbone_of(toy_task, "embedded", precision="bf16", method={"num_virtual_tokens": 128})
    assert long.config._attn_implementation == "sdpa"
    exact = backbone_of(toy_task, "embedded", precision="fp32")
    assert exact.config._attn_implementation == "sdpa"


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


def test_a_loaded_decoder_s_head_reads_one_block_whoever_slices_its_states(saved_models):
    model = load_backbone(saved_models["llama"], labels=2, dtype="fp32").model
    read = []
    model.lm_head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    ids = torch.randint(3, model.config.vocab_size, (3, 7))
    with torch.no_grad():
        last = model(input_ids=ids, logits_to_keep=1).logits
        model.generate(input_ids=ids, max_new_tokens=2, do_sample=False)
        every = model(input_ids=ids).logits
    assert [states.shape[1] for states in read] == [1, 1, 1, 7]
    assert all(states.is_contiguous() for states in read)
    assert_close(last, every[:, -1:])
