"""What a configuration refuses, in one sentence with the remedy in it."""

import pytest
from peft import PeftConfig, PeftType, get_peft_model
from torch import nn
from transformers import DistilBertConfig, DistilBertModel, MptConfig, MptModel

from peft_smop.bottleneck import BottleneckConfig, BottleneckModel
from peft_smop.bottleneck.layer import BottleneckLayer
from peft_smop.errors import ConfigError
from tiny import KINDS


def test_peft_knows_the_method():
    assert PeftType("BOTTLENECK") is PeftType.BOTTLENECK
    assert PeftConfig.from_peft_type(peft_type="BOTTLENECK") == BottleneckConfig()
    model = get_peft_model(KINDS["t5"].model(), BottleneckConfig())
    assert isinstance(model.base_model, BottleneckModel)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bottleneck_size": 0}, r"bottleneck_size=0 must be a whole number of at least 1"),
        ({"bottleneck_size": 4.0}, r"bottleneck_size=4\.0 must be a whole number"),
        ({"bottleneck_size": True}, r"bottleneck_size=True must be a whole number"),
        ({"seed": "1"}, r"seed='1' must be a whole number"),
        ({"format_version": None}, r"format_version=None must be a whole number"),
        ({"format_version": 2}, r"format_version=2 is newer .* upgrade peft-smop"),
        ({"placement": "houlsbi"}, r"unknown placement 'houlsbi'; did you mean houlsby\?"),
        ({"placement": 3}, r"unknown placement '3'; known: houlsby, pfeiffer"),
        ({"placement": ["pfeiffer"]}, r"unknown placement"),
        ({"activation": "swish"}, r"unknown activation 'swish'; known: gelu, relu, silu, tanh"),
        ({"activation": ["relu"]}, r"unknown activation"),
        ({"target_modules": []}, r"target_modules=\[\] must be one text or a list of texts"),
        ({"target_modules": ["o", 3]}, r"target_modules=\['o', 3\] must be one text or a list"),
        ({"modules_to_save": "lm_head"}, r"modules_to_save='lm_head' must be a list of texts"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        BottleneckConfig(**options)


def mpt():
    return MptModel(MptConfig(d_model=32, n_heads=4, n_layers=1, vocab_size=20))


def test_an_unknown_model_type_needs_target_modules():
    with pytest.raises(ConfigError, match=r"target_modules=None .* 'mpt'; give target_modules"):
        get_peft_model(mpt(), BottleneckConfig())
    model = get_peft_model(mpt(), BottleneckConfig(target_modules=["out_proj", "down_proj"]))
    assert sum(isinstance(module, BottleneckLayer) for module in model.modules()) == 2


def test_a_model_without_a_type_needs_target_modules():
    with pytest.raises(ConfigError, match="give target_modules"):
        get_peft_model(nn.Sequential(nn.Linear(3, 3)), BottleneckConfig())
    model = get_peft_model(nn.Sequential(nn.Linear(3, 3)), BottleneckConfig(target_modules=["0"]))
    assert model.get_nb_trainable_parameters()[0] == 2 * 3 * 48 + 48 + 3


def test_a_module_that_is_not_linear_is_refused():
    with pytest.raises(
        ConfigError, match="names a OPTLearnedPositionalEmbedding, which is no linear module"
    ):
        get_peft_model(KINDS["opt"].model(), BottleneckConfig(target_modules=["embed_positions"]))


def test_distilbert_has_a_bottleneck_behind_both_sub_layers():
    model = DistilBertModel(
        DistilBertConfig(vocab_size=20, dim=32, hidden_dim=64, n_layers=2, n_heads=4)
    )
    adapted = get_peft_model(model, BottleneckConfig()).get_base_model()
    wrapped = {key for key, m in adapted.named_modules() if isinstance(m, BottleneckLayer)}
    assert wrapped == {
        f"transformer.layer.{i}.{end}" for i in (0, 1) for end in ("attention.out_lin", "ffn.lin2")
    }
