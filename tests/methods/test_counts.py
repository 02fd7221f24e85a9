"""The paper's parameter counts, every row of them, to the last printed digit."""

import pytest
import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

from peft_smop.lab import variant
from peft_smop.methods import MethodSpec, ParameterCount, Setting, build

SIZES = {
    "T5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "T5-large": {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
}
BACKBONE = {"T5-base": 222_882_048, "T5-large": 737_639_424}
SETTING = Setting(TaskType.SEQ_2_SEQ_LM, ("yes", "no"), "t5-base", 0)

# paper/facts: what, trainable parameters, the per cent as printed
PAPER = [
    ("T5-base", "smop", 18_432, "0.0083"),
    ("T5-large", "smop", 24_576, "0.0033"),
    ("T5-base", "prompt-tuning-100", 76_800, "0.0344"),
    ("T5-large", "prompt-tuning-100", 102_400, "0.0139"),
    ("T5-base", "p-tuning-20", 229_376, "0.1028"),
    ("T5-large", "p-tuning-20", 300_288, "0.0407"),
    ("T5-base", "houlsby-48", 3_578_112, "1.5800"),
    ("T5-base", "houlsby-8", 627_072, "0.2806"),
    ("T5-base", "pfeiffer-48", 1_789_056, "0.7963"),
    ("T5-base", "pfeiffer-8", 313_536, "0.1405"),
    ("T5-base", "lora-1", 110_592, "0.0496"),
    ("T5-base", "lora-2", 221_184, "0.0991"),
    ("T5-base", "lora-4", 442_368, "0.1981"),
    ("T5-base", "lora-8", 884_736, "0.3954"),
]
# worked out by hand: 48 layers of T5-large, 72 attentions with queries and values
BY_HAND = [
    ("T5-large", "houlsby-48", 48 * 2 * (2 * 1024 * 48 + 48 + 1024)),
    ("T5-large", "pfeiffer-8", 48 * (2 * 1024 * 8 + 8 + 1024)),
    ("T5-large", "lora-8", 72 * 2 * 8 * (1024 + 1024)),
    ("T5-base", "single", 5 * 768),
    ("T5-base", "smop-uniform", 4 * 5 * 768),
    ("T5-base", "smop-stochastic", 4 * 5 * 768),
    ("T5-base", "smop-hashed", 4 * 5 * 768),
    ("T5-base", "smop-gumbel", 4 * 5 * 768 + 768 * 4),
    ("T5-base", "smop-low-rank", 4 * 5 * 8 + 8 * 768 + 768 * 4),
    ("T5-base", "smop-residual", 18_432 + 2 * 768 * 64 + 64 + 768 + 2 * 768),
    # a key and a value of every layer of the decoder, for each virtual token
    ("T5-base", "prefix-tuning-20", 20 * 12 * 2 * 768),
    # keys and values of 36 attentions, the hidden width of 24 feed-forwards
    ("T5-base", "ia3", 36 * 2 * 768 + 24 * 3072),
]


def counted(size: str, name: str) -> ParameterCount:
    with torch.device("meta"):
        backbone = T5ForConditionalGeneration(T5Config(vocab_size=32_100, **SIZES[size]))
        return ParameterCount.of(build(backbone, variant(name).spec, SETTING))


@pytest.mark.parametrize(("size", "name", "trainable", "percent"), PAPER)
def test_the_paper_s_counts_and_percentages(size, name, trainable, percent):
    count = counted(size, name)
    assert count.trainable == count.allocated == trainable
    assert count.backbone == BACKBONE[size]
    assert f"{count.percentage:.4f}" == percent


@pytest.mark.parametrize(("size", "name", "trainable"), BY_HAND)
def test_counts_worked_out_by_hand(size, name, trainable):
    assert counted(size, name).trainable == trainable


@pytest.mark.parametrize("size", SIZES)
def test_full_fine_tuning_trains_every_weight(size):
    count = counted(size, "full")
    assert (count.trainable, count.backbone, count.percentage) == (BACKBONE[size], 0, 100.0)


def test_rows_that_peft_allocates_and_never_reads_are_told_apart():
    with torch.device("meta"):
        backbone = T5ForConditionalGeneration(T5Config(vocab_size=32_100, **SIZES["T5-base"]))
        model = get_peft_model(
            backbone, PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=100)
        )
    count = ParameterCount.of(model)
    assert (count.trainable, count.allocated) == (76_800, 153_600)


def test_a_method_spec_says_nothing_it_was_not_told():
    assert MethodSpec(name="lora", rank=4).given() == {"rank": 4}
