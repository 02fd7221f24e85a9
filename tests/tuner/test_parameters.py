"""The paper's parameter counts, to the last printed digit (its Table 2)."""

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

from peft_smop import SMoPConfig
from tiny import KINDS, WIDTH, adapted

SIZES = {
    "T5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "T5-large": {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
}
BACKBONE = {
    ("T5-base", 32128): 222_903_552,
    ("T5-base", 32100): 222_882_048,
    ("T5-large", 32128): 737_668_096,
    ("T5-large", 32100): 737_639_424,
}


def t5(size, rows):
    with torch.device("meta"):
        return T5ForConditionalGeneration(T5Config(vocab_size=rows, **SIZES[size]))


@pytest.mark.parametrize(("size", "rows"), BACKBONE)
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_the_paper_s_shapes_have_the_paper_s_counts(size, rows, low_cpu_mem_usage, capsys):
    trainable, percent = {"T5-base": (18_432, "0.0083"), "T5-large": (24_576, "0.0033")}[size]
    total = BACKBONE[size, rows] + trainable
    model = get_peft_model(
        t5(size, rows),
        SMoPConfig(task_type="SEQ_2_SEQ_LM", num_prompts=4, num_virtual_tokens=5),
        low_cpu_mem_usage=low_cpu_mem_usage,
    )
    model.print_trainable_parameters()
    assert capsys.readouterr().out == (
        f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {percent}\n"
    )
    assert all(p.device.type == "meta" for p in model.parameters())


@pytest.mark.parametrize(
    ("size", "trainable", "percent"),
    [("T5-base", 76_800, "0.0344"), ("T5-large", 102_400, "0.0139")],
)
def test_prompt_tuning_of_100_tokens_has_the_paper_s_count_and_peft_s(
    size, trainable, percent, capsys
):
    single = SMoPConfig(task_type="SEQ_2_SEQ_LM", routing="single", num_virtual_tokens=100)
    theirs = PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=100, num_transformer_submodules=1
    )
    for config in (single, theirs):
        get_peft_model(t5(size, 32100), config).print_trainable_parameters()
        printed = capsys.readouterr().out
        assert printed.startswith(f"trainable params: {trainable:,} ||")
        assert printed.endswith(f"trainable%: {percent}\n")


@pytest.mark.parametrize("name", ["t5", "bart", "llama", "gpt2", "opt"])
@pytest.mark.parametrize(("k", "l"), [(1, 1), (4, 5), (7, 3)])
def test_trainable_are_k_l_e_for_the_prompts_and_e_k_for_the_router(name, k, l):  # noqa: E741
    model = adapted(KINDS[name], num_prompts=k, num_virtual_tokens=l)
    assert model.get_nb_trainable_parameters()[0] == k * l * WIDTH + WIDTH * k


def test_a_classifier_is_trained_and_counted_beside_the_prompts():
    model = adapted(KINDS["bert"])
    assert model.get_nb_trainable_parameters()[0] == 4 * 5 * WIDTH + WIDTH * 4 + (WIDTH * 2 + 2)


def test_modules_to_save_may_be_named():
    model = adapted(KINDS["llama"], modules_to_save=["lm_head"])
    assert model.get_nb_trainable_parameters()[0] == 4 * 5 * WIDTH + WIDTH * 4 + WIDTH * 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_prompts_and_router_are_fp32_whatever_the_backbone_is(dtype, autocast_adapter_dtype):
    model = get_peft_model(
        KINDS["t5"].model().to(dtype),
        SMoPConfig(task_type="SEQ_2_SEQ_LM"),
        autocast_adapter_dtype=autocast_adapter_dtype,
    )
    layer = model.smop_layer
    assert layer["default"].prompts.dtype == torch.float32
    assert layer["default"].router.dtype == torch.float32
    assert layer["default"].steps.dtype == torch.int64
