"""Parameter counts, to the last printed digit, and which parameters move."""

import pytest
import torch
from bottlenecks import adapted, config, tensors, trained
from peft import get_peft_model
from torch.testing import assert_close
from transformers import T5Config, T5ForConditionalGeneration

from peft_smop.bottleneck import BottleneckConfig
from peft_smop.bottleneck.layer import BottleneckLayer
from tiny import KINDS, THREE, batch, without_dropout

SIZES = {
    "T5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "T5-large": {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
}
BACKBONE = {"T5-base": 222_882_048, "T5-large": 737_639_424}  # with 32,100 rows of vocabulary
# T5-base: 24 blocks, e = 768; d = 48: 2·768·48 + 48 + 768 = 74,544; d = 8: 13,064
# T5-large: 48 blocks, e = 1024; d = 48: 2·1024·48 + 48 + 1024 = 99,376; d = 8: 17,416
COUNTS = [
    ("T5-base", "houlsby", 48, 3_578_112, "1.5800"),
    ("T5-base", "houlsby", 8, 627_072, "0.2806"),
    ("T5-base", "pfeiffer", 48, 1_789_056, "0.7963"),
    ("T5-base", "pfeiffer", 8, 313_536, "0.1405"),
    ("T5-large", "houlsby", 48, 9_540_096, "1.2768"),
    ("T5-large", "houlsby", 8, 1_671_936, "0.2261"),
    ("T5-large", "pfeiffer", 48, 4_770_048, "0.6425"),
    ("T5-large", "pfeiffer", 8, 835_968, "0.1132"),
]


@pytest.mark.parametrize(("size", "placement", "d", "trainable", "percent"), COUNTS)
def test_t5_has_the_counts_worked_out_by_hand(size, placement, d, trainable, percent, capsys):
    with torch.device("meta"):
        backbone = T5ForConditionalGeneration(T5Config(vocab_size=32100, **SIZES[size]))
    options = {"bottleneck_size": d, "placement": placement}
    model = get_peft_model(backbone, BottleneckConfig(task_type="SEQ_2_SEQ_LM", **options))
    model.print_trainable_parameters()
    assert capsys.readouterr().out == (
        f"trainable params: {trainable:,} || all params: {BACKBONE[size] + trainable:,}"
        f" || trainable%: {percent}\n"
    )
    assert all(p.device.type == "meta" for p in model.parameters())


def test_a_classifier_is_trained_and_counted_beside_the_bottlenecks():
    model = adapted(KINDS["bert"])
    assert model.get_nb_trainable_parameters()[0] == 4 * (2 * 32 * 4 + 4 + 32) + (32 * 2 + 2)


def test_modules_to_save_may_be_named():
    model = adapted(KINDS["llama"], modules_to_save=["lm_head"])
    assert model.get_nb_trainable_parameters()[0] == 4 * (2 * 32 * 4 + 4 + 32) + 32 * 100


@pytest.mark.parametrize("name", KINDS)
def test_only_bottlenecks_and_trained_heads_get_gradients(name):
    kind = KINDS[name]
    model = adapted(kind).train()
    model(**batch(kind)).logits.square().sum().backward()
    touched = {key for key, p in model.named_parameters() if p.grad is not None}
    assert touched == {key for key, p in model.named_parameters() if p.requires_grad}
    heads = {key for key in touched if "modules_to_save" in key}
    assert bool(heads) is (kind.task_type == "SEQ_CLS")
    assert all("bottleneck_" in key for key in touched - heads)
    assert all(
        p.grad.abs().sum() > 0 for key, p in model.named_parameters() if key in touched - heads
    )


@pytest.mark.parametrize("name", THREE)
def test_a_step_of_training_leaves_the_backbone_as_it_was(name):
    kind = KINDS[name]
    model = get_peft_model(kind.model(), config(kind)).train()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):  # U starts at zero, so D moves from the second step on
        optimiser.zero_grad()
        model(**batch(kind)).logits.square().sum().backward()
        optimiser.step()
    for key, p in model.named_parameters():
        assert torch.equal(p, before[key]) is not ("bottleneck_" in key or "to_save" in key)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("name", THREE)
def test_gradient_checkpointing_changes_no_gradient(name, use_reentrant):
    kind, made = KINDS[name], batch(KINDS[name])

    def gradients(checkpointing):
        backbone = without_dropout(kind.model())
        backbone.config.use_cache = False
        if checkpointing:  # before PEFT, which then lets the embeddings require gradients
            backbone.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": use_reentrant}
            )
        model = trained(get_peft_model(backbone, config(kind))).train()
        model(**made).logits.square().mean().backward()
        return {key: p.grad for key, p in model.named_parameters() if p.requires_grad}

    plain, saving = gradients(False), gradients(True)
    assert plain.keys() == saving.keys()
    for key, gradient in plain.items():
        assert gradient.abs().sum() > 0
        assert_close(saving[key], gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", THREE)
def test_on_a_half_precision_backbone_bottlenecks_are_fp32_unless_peft_is_told_otherwise(
    name, dtype
):
    kind, made = KINDS[name], batch(KINDS[name])
    half = kind.model().to(dtype)
    with torch.no_grad():
        expected = half(**made).logits
    for autocast, wanted in [(True, torch.float32), (False, dtype)]:
        model = get_peft_model(
            kind.model().to(dtype), config(kind), autocast_adapter_dtype=autocast
        ).eval()
        assert {p.dtype for p in tensors(model).values()} == {wanted}
        with torch.no_grad():
            output = model(**made).logits
        assert output.dtype == dtype
        if name != "bert" or not autocast:  # PEFT copies BERT's classifier in fp32
            assert torch.equal(output, expected)


def test_on_a_double_backbone_bottlenecks_are_double():
    kind = KINDS["t5"]
    model = get_peft_model(kind.model().double(), config(kind))
    assert {p.dtype for p in tensors(model).values()} == {torch.float64}


def test_a_bf16_sum_is_computed_in_fp32_and_rounded_once():
    layer = BottleneckLayer(torch.nn.Linear(32, 32).bfloat16(), object())
    layer.add_adapter(
        "default", size=4, activation="relu", generator=torch.Generator().manual_seed(0)
    )
    layer.float()
    layer.base_layer.bfloat16()
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    torch.nn.init.normal_(up.weight)
    x = torch.randn(5, 32).bfloat16()
    h = layer.base_layer(x).float()
    inner = (h @ down.weight.T + down.bias).clamp(min=0)
    expected = h + inner @ up.weight.T + up.bias
    assert layer(x).dtype == torch.bfloat16
    assert_close(layer(x), expected.bfloat16(), rtol=2**-8, atol=1e-6)
