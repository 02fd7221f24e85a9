"""A backbone's precision and head, by what its device is fast at."""

import pytest
import torch
from torch.testing import assert_close

from peft_smop.methods import load_backbone, precision

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
