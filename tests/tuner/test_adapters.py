"""Adapters by name, as PEFT users handle them; and a backbone that carries LoRA already."""

import copy
import pickle

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_layer_status,
    get_model_status,
    get_peft_model,
    inject_adapter_in_model,
)
from torch.testing import assert_close

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from peft_smop.tuner.layer import SMoPLayer
from tiny import KINDS, THREE, adapted, batch, decided


def config(kind, **options):
    return SMoPConfig(task_type=kind.task_type, **options)


def two(name, **options):
    """A model with adapters "a" (k=4, l=5) and "b" (k=3, l=2)."""
    kind = KINDS[name]
    model = adapted(kind, adapter="a")
    model.add_adapter("b", config(kind, num_prompts=3, num_virtual_tokens=2, **options))
    return decided(model, "b", seed=9)


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def hooks(model):
    """Every forward hook in a model."""
    return [
        hook
        for module in model.modules()
        for table in (module._forward_hooks, module._forward_pre_hooks)
        for hook in table.values()
    ]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", THREE)
def test_the_active_adapter_decides_and_switching_back_restores_the_output(name):
    kind = KINDS[name]
    model, made = two(name), batch(kind)
    first = model(**made).logits
    assert torch.equal(first, adapted(kind, adapter="a")(**made).logits)
    assert model.last_routes.adapters == ("a",) * 4
    model.set_adapter("b")
    second = model(**made).logits
    assert model.last_routes.adapters == ("b",) * 4
    assert not torch.allclose(first, second)
    model.set_adapter("a")
    assert torch.equal(model(**made).logits, first)


def test_only_the_active_adapter_is_trainable_and_the_backbone_never_is():
    model = two("t5")
    of = {
        name: {f"base_model.model.smop.smop_adapters.{name}.{p}" for p in ("prompts", "router")}
        for name in "ab"
    }
    assert trainable(model) == of["a"]
    model.set_adapter("b")
    assert trainable(model) == of["b"]
    model.set_requires_grad("a")
    assert trainable(model) == of["a"] | of["b"]
    model.set_requires_grad("b", requires_grad=False)
    assert trainable(model) == of["a"]
    model.set_adapter("b", inference_mode=True)
    assert trainable(model) == set()


def test_trainability_survives_disabling_the_adapter_for_a_while():
    model = two("t5")
    before = trainable(model)
    with model.disable_adapter():
        pass
    assert trainable(model) == before


def test_the_classifier_of_the_active_adapter_is_trained_with_it():
    model = two("bert")
    assert {name for name in trainable(model) if "classifier" in name} == {
        f"base_model.model.classifier.modules_to_save.a.{part}" for part in ("weight", "bias")
    }
    model.set_adapter("b")
    assert all(".b" in name for name in trainable(model))


def test_the_first_adapter_decides_no_other_s_trainability_in_inference_mode():
    model = get_peft_model(
        KINDS["t5"].model(), SMoPConfig(task_type="SEQ_2_SEQ_LM", inference_mode=True)
    )
    assert trainable(model) == set()


@pytest.mark.parametrize("name", THREE)
def test_deleting_an_inactive_adapter_changes_nothing_else(name):
    kind = KINDS[name]
    model, made = two(name), batch(kind)
    before = model(**made).logits
    model.delete_adapter("b")
    assert list(model.peft_config) == ["a"]
    assert not any("b" in key.split(".") for key in model.state_dict())
    assert torch.equal(model(**made).logits, before)
    with pytest.raises(ConfigError, match="unknown adapters b"):
        model(**made, adapter_names=["b"] * 4)


@pytest.mark.parametrize("name", THREE)
def test_deleting_the_active_adapter_makes_another_one_active_as_peft_says(name):
    kind = KINDS[name]
    model, made = two(name), batch(kind)
    model.set_adapter("b")
    second = model(**made).logits
    model.set_adapter("a")
    with pytest.warns(UserWarning, match="Setting active adapter"):
        model.delete_adapter("a")
    assert torch.equal(model(**made).logits, second)
    assert model.last_routes.adapters == ("b",) * 4


def test_deleting_the_last_adapter_leaves_the_bare_model():
    kind = KINDS["t5"]
    model, made = adapted(kind), batch(kind)
    model.delete_adapter("default")
    # PEFT's own wrapper knows no state without adapters; the model below works
    assert torch.equal(model.base_model.model(**made).logits, kind.model()(**made).logits)


def test_an_adapter_of_the_same_name_can_be_added_again_after_deletion():
    kind = KINDS["llama"]
    model = two("llama")
    model.delete_adapter("b")
    model.add_adapter("b", config(kind, num_virtual_tokens=3, router_scope="input"))
    assert model.smop_layer["b"].prompts.shape == (4, 3, 32)
    model.set_adapter("b")
    model(**batch(kind))


def test_several_active_adapters_are_refused_because_a_row_follows_one():
    model, made = two("t5"), batch(KINDS["t5"])
    model.base_model.set_adapter(["a", "b"])
    with pytest.raises(ConfigError, match=r"2 adapters are active \(a, b\)"):
        model(**made)
    model(**made, adapter_names=["a", "b", "a", "b"])


def test_peft_s_status_functions_describe_the_model():
    model = two("t5")
    status = get_model_status(model)
    assert status.peft_types == {"a": "SMOP", "b": "SMOP"}
    assert status.adapter_model_type == "SMoPModel"
    assert status.enabled is True
    assert status.active_adapters == ["a"]
    assert status.available_adapters == ["a", "b"]
    assert status.merged_adapters == []
    assert status.requires_grad == {"a": True, "b": False}
    assert status.trainable_params == 4 * 5 * 32 + 32 * 4
    layers = get_layer_status(model)
    assert [layer.name for layer in layers] == ["model.smop"]
    assert layers[0].module_type == "SMoPLayer"
    with model.disable_adapter():
        assert get_model_status(model).enabled is False


def test_an_adapter_named_after_the_method_works_although_peft_warns(tmp_path):
    kind = KINDS["t5"]
    made = batch(kind)
    for number, name in enumerate(("smop", "smop_", "s")):
        with pytest.warns(UserWarning, match="should not be contained in the prefix"):
            model = adapted(kind, adapter=name)
        expected = model(**made).logits
        assert not torch.equal(expected, kind.model()(**made).logits)
        directory = tmp_path / str(number)
        model.save_pretrained(directory)
        again = PeftModel.from_pretrained(kind.model(), directory / name, adapter_name=name)
        assert torch.equal(again.eval()(**made).logits, expected)


@pytest.mark.parametrize("adapter", ["smop_prompts", "my_smop_one", "model", "0", "a b", "ä-1"])
def test_any_name_is_trained_saved_loaded_switched_and_deleted(adapter, tmp_path):
    kind = KINDS["bert"]
    made = batch(kind)
    model = adapted(kind, adapter=adapter)
    expected = model(**made).logits
    assert len(trainable(model)) == 4  # prompts, router, the head's weight and bias
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(kind.model(), tmp_path / adapter, adapter_name=adapter)
    assert torch.equal(again.eval()(**made).logits, expected)
    again.load_adapter(tmp_path / adapter, "other")
    again.set_adapter("other")
    assert torch.equal(again(**made).logits, expected)
    again.delete_adapter(adapter)
    assert torch.equal(again(**made).logits, expected)
    assert list(again.smop_layer) == ["other"]


def test_one_name_within_another_is_not_mixed_up(tmp_path):
    kind = KINDS["t5"]
    model = adapted(kind, adapter="default")
    model.add_adapter("default_2", config(kind))
    decided(model, "default_2", seed=8)
    model.save_pretrained(tmp_path)
    for name, directory in (("default", tmp_path), ("default_2", tmp_path / "default_2")):
        model.set_adapter(name)
        expected = model(**batch(kind)).logits
        loaded = PeftModel.from_pretrained(kind.model(), directory).eval()
        assert torch.equal(loaded(**batch(kind)).logits, expected)


def test_a_configuration_of_another_method_is_refused():
    model = adapted(KINDS["t5"])
    with pytest.raises((ConfigError, ValueError), match=r"SMoPConfig|different|type"):
        model.add_adapter("other", LoraConfig(task_type="SEQ_2_SEQ_LM"))
    assert "other" not in model.peft_config


def test_a_failed_adapter_leaves_the_model_as_it_was(tmp_path):
    kind = KINDS["t5"]
    model, made = adapted(kind), batch(kind)
    expected = model(**made).logits
    with pytest.raises(Exception, match="does not exist"):
        model.add_adapter("b", config(kind, init="adapter", init_adapter=str(tmp_path / "gone")))
    assert list(model.peft_config) == ["default"]
    assert list(model.smop_layer) == ["default"]
    assert torch.equal(model(**made).logits, expected)


@pytest.mark.parametrize("name", KINDS)
def test_unloading_gives_the_bare_model_back_with_no_hook_left(name):
    kind = KINDS[name]
    bare, made = kind.model(), batch(kind)
    before = hooks(bare)
    expected, keys = bare(**made).logits, list(bare.state_dict())
    model = adapted(kind)
    assert len(hooks(model.get_base_model())) > len(before)
    unloaded = model.unload()
    assert hooks(unloaded) == before
    assert list(unloaded.state_dict()) == keys
    assert not any(isinstance(module, SMoPLayer) for module in unloaded.modules())
    assert not hasattr(unloaded, "peft_config")
    assert torch.equal(unloaded(**made).logits, expected)
    again = decided(get_peft_model(unloaded, config(kind)))
    assert not torch.equal(again(**made).logits, expected)


@pytest.mark.parametrize("method", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused_because_a_prompt_depends_on_the_input(method):
    model, made = adapted(KINDS["t5"]), batch(KINDS["t5"])
    expected = model(**made).logits
    with pytest.raises(ConfigError, match="cannot be merged"):
        getattr(model, method)()
    assert torch.equal(model(**made).logits, expected)


@pytest.mark.parametrize("name", THREE)
def test_injected_into_a_model_that_stays_its_own_class_it_works_as_well(name):
    kind, made = KINDS[name], batch(KINDS[name])
    model = inject_adapter_in_model(config(kind), kind.model())
    assert type(model) is type(kind.model())
    wrapped = adapted(kind)
    with torch.no_grad():
        model.smop.load_state_dict(wrapped.smop_layer.state_dict())
    if name == "bert":  # a head is PEFT's affair there
        model.classifier.load_state_dict(
            wrapped.get_base_model().classifier.modules_to_save["default"].state_dict()
        )
    assert_close(model.eval()(**made).logits, wrapped(**made).logits)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_transformers_own_adapter_methods_work_as_well(name, tmp_path):
    kind, made = KINDS[name], batch(KINDS[name])
    model, bare = kind.model(), kind.model()(**made).logits
    model.add_adapter(config(kind), "mine")
    expected = model(**made).logits
    assert not torch.allclose(expected, bare, atol=1e-4)
    model.disable_adapters()
    assert_close(model(**made).logits, bare)
    model.enable_adapters()
    model.save_pretrained(tmp_path)
    again = kind.model()
    again.load_adapter(tmp_path, "again")
    assert_close(again(**made).logits, expected)
    again.delete_adapter("again")
    assert_close(again(**made).logits, bare)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["deepcopy", "pickle"])  # fmt: skip
@pytest.mark.parametrize("name", THREE)
def test_a_copy_gives_the_same_output_and_is_independent(name, copied):
    kind = KINDS[name]
    model, made = two(name), batch(kind)
    expected = model(**made).logits
    other = copied(model)
    assert torch.equal(other(**made).logits, expected)
    other.smop_layer["a"].prompts.zero_()
    assert torch.equal(model(**made).logits, expected)
    assert not torch.equal(other(**made).logits, expected)
    other.set_adapter("b")
    other(**made)
    assert other.last_routes.adapters == ("b",) * 4
    assert model.last_routes.adapters == ("a",) * 4


def test_training_mode_reaches_adapters_that_are_added_later():
    model = adapted(KINDS["t5"]).train()
    model.add_adapter("b", config(KINDS["t5"]))
    model.set_adapter("b")
    assert model.smop_layer.training
    assert model.smop_layer["b"].training


# -- a backbone that carries LoRA --------------------------------------------------------------

NESTED = pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT:UserWarning")


def lora(name):
    """A tiny backbone whose LoRA matters."""
    kind = KINDS[name]
    targets = {"t5": ["q", "v"], "llama": ["q_proj", "v_proj"], "bert": ["query", "value"]}[name]
    model = get_peft_model(
        kind.model(), LoraConfig(task_type=kind.task_type, r=2, target_modules=targets)
    )
    generator = torch.Generator().manual_seed(4)
    for key, p in model.named_parameters():
        if "lora_B" in key:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return model.eval()


@NESTED
@pytest.mark.parametrize("name", THREE)
def test_a_lora_stays_applied_and_frozen_below_the_prompt(name):
    kind, made = KINDS[name], batch(KINDS[name])
    below, bare = lora(name)(**made).logits, kind.model()(**made).logits
    model = decided(get_peft_model(lora(name), config(kind)))
    above = model(**made).logits
    assert not torch.allclose(above, below)
    assert not torch.allclose(above, adapted(kind)(**made).logits)
    with model.disable_adapter():
        off = model(**made).logits
    assert torch.equal(off, below)
    assert not torch.allclose(off, bare)
    assert torch.equal(model(**made).logits, above)
    assert not any("lora" in key for key in trainable(model))
    assert any("smop" in key for key in trainable(model))


@NESTED
@pytest.mark.parametrize("name", THREE)
def test_the_prompt_s_checkpoint_over_lora_holds_the_prompt_alone_and_loads(name, tmp_path):
    from safetensors.torch import load_file

    kind, made = KINDS[name], batch(KINDS[name])
    model = decided(get_peft_model(lora(name), config(kind)))
    expected = model(**made).logits
    model.save_pretrained(tmp_path)
    keys = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert not any("lora" in key for key in keys)
    assert sum("smop_" in key for key in keys) == 4  # prompts, router, steps, settings
    again = PeftModel.from_pretrained(lora(name), tmp_path).eval()
    assert torch.equal(again(**made).logits, expected)


@NESTED
@pytest.mark.parametrize("name", THREE)
def test_unloading_the_prompt_leaves_the_lora_where_it_was(name):
    kind, made = KINDS[name], batch(KINDS[name])
    expected = lora(name)(**made).logits
    unloaded = get_peft_model(lora(name), config(kind)).unload()
    assert torch.equal(unloaded.eval()(**made).logits, expected)


@NESTED
def test_training_the_prompt_over_lora_moves_nothing_of_the_lora():
    model = decided(get_peft_model(lora("t5"), config(KINDS["t5"]))).train()
    with torch.enable_grad():
        model(**batch(KINDS["t5"])).loss.backward()
    assert {key for key, p in model.named_parameters() if p.grad is not None} == {
        f"base_model.model.smop.smop_adapters.default.{part}" for part in ("prompts", "router")
    }


@NESTED
def test_the_lora_of_a_wrapped_model_keeps_its_own_status_and_can_be_saved(tmp_path):
    """The user keeps the handle on the LoRA model; wrapping must not spoil it."""
    inner = lora("t5")
    get_peft_model(inner, config(KINDS["t5"]))
    inner.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(KINDS["t5"].model(), tmp_path).eval()
    made = batch(KINDS["t5"])
    assert_close(again(**made).logits, lora("t5")(**made).logits)
