"""Whichever door a model is entered by, the prompt is there, decided once; or it is refused."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    T5EncoderModel,
)

from peft_smop import BottleneckConfig, SMoPConfig
from peft_smop.errors import ConfigError, PromptIgnoredError
from peft_smop.rows import Call, current
from tiny import GENERATORS, KINDS, THREE, adapted, batch, decided

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
LENGTH = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
NATIVE = {
    "t5": AutoModelForSeq2SeqLM,
    "llama": AutoModelForCausalLM,
    "bert": AutoModelForSequenceClassification,
}


def text_of(kind):
    return {k: v for k, v in batch(kind).items() if k != "labels"}


# -- forward and generate past PEFT's wrapper ----------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_forward_called_past_every_hook_is_the_same_forward(name):
    kind = KINDS[name]
    model, made = adapted(kind), batch(kind)
    expected = model(**made).logits
    base = model.get_base_model()
    assert torch.equal(base(**made).logits, expected)
    assert torch.equal(base.forward(**made).logits, expected)
    assert torch.equal(model.base_model.forward(**made).logits, expected)


@pytest.mark.parametrize("name", KINDS)
def test_a_backbone_called_by_itself_is_given_the_prompt(name):
    kind = KINDS[name]
    model, made = adapted(kind), text_of(kind)
    backbone = model.smop_layer.hooks.backbone.module
    expected = backbone(**made)[0]
    assert torch.equal(backbone.forward(**made)[0], expected)
    with model.disable_adapter():
        assert not torch.allclose(backbone(**made)[0][:, :7], expected[:, :7])


@pytest.mark.parametrize("name", THREE)
def test_a_copy_that_data_parallel_makes_is_refused(name):
    model, made = adapted(KINDS[name]), text_of(KINDS[name])
    backbone = model.smop_layer.hooks.backbone.module
    copied = backbone._replicate_for_data_parallel()  # as nn.DataParallel does for each device
    copied._parameters, copied._modules = backbone._parameters, backbone._modules
    with pytest.raises(ConfigError, match=r"nn\.DataParallel runs copies"):
        copied(**made)


class Stop:
    """Interrupts whoever computes a module, as Ctrl-C may at any time."""

    def __init__(self, module):
        self.handle = module.register_forward_hook(self)

    def __call__(self, *_):
        self.handle.remove()
        raise KeyboardInterrupt


@pytest.mark.parametrize("entered", ["model", "model.forward", "backbone", "backbone.forward"])
@pytest.mark.parametrize("at", ["embedding", "last layer"])
@pytest.mark.parametrize("name", KINDS)
def test_after_an_interrupt_the_next_call_is_as_if_there_had_been_none(name, at, entered):
    kind = KINDS[name]
    model, made = adapted(kind), batch(kind)
    expected = model(**made).logits
    base, layer = model.get_base_model(), model.smop_layer
    backbone = layer.hooks.backbone.module
    states = backbone(**text_of(kind))[0]
    entered = {
        "model": lambda: base(**made),
        "model.forward": lambda: base.forward(**made),
        "backbone": lambda: backbone(**text_of(kind)),
        "backbone.forward": lambda: backbone.forward(**text_of(kind)),
    }[entered]
    *_, last = backbone.modules()
    Stop(backbone.get_input_embeddings() if at == "embedding" else last)
    with pytest.raises(KeyboardInterrupt):
        entered()
    assert current(layer, Call) is None
    assert torch.equal(backbone.forward(**text_of(kind))[0], states)
    assert torch.equal(base.forward(**made).logits, expected)


def test_after_an_interrupt_while_rows_are_judged_the_next_call_is_right_too():
    kind = KINDS["t5"]
    model, made = adapted(kind, routing="posterior"), batch(kind)
    expected = model(**made).logits
    base = model.get_base_model().train()
    Stop(model.smop_layer.hooks.backbone.embedding)
    with pytest.raises(KeyboardInterrupt):
        base(**made)
    assert current(model.smop_layer, Call) is None
    assert torch.equal(base.eval().forward(**made).logits, expected)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", GENERATORS)
def test_a_base_model_s_own_generate_decides_once(name, cached):
    kind = KINDS[name]
    model, made = adapted(kind), text_of(kind)
    expected = model.generate(**made, **LENGTH, use_cache=cached)
    routes = model.last_routes
    assert torch.equal(
        model.get_base_model().generate(**made, **LENGTH, use_cache=cached), expected
    )
    assert torch.equal(model.last_routes.indices, routes.indices)


def test_the_signatures_of_guarded_methods_are_the_model_s_own():
    """Trainers drop the columns that a forward does not name."""
    import inspect

    bare, model = KINDS["t5"].model(), adapted(KINDS["t5"]).get_base_model()
    for name in ("forward", "generate"):
        assert inspect.signature(getattr(model, name)) == inspect.signature(getattr(bare, name))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", THREE)
def test_a_copied_or_pickled_model_has_doors_of_its_own(name, again):
    kind = KINDS[name]
    model, made = adapted(kind), batch(kind)
    expected = model(**made).logits
    other = again(model)
    with torch.no_grad():
        model.smop_layer["default"].prompts.zero_()
    assert torch.equal(other(**made).logits, expected)
    assert torch.equal(other.get_base_model().forward(**made).logits, expected)
    bare = other.unload()
    assert "forward" not in bare.__dict__
    assert "generate" not in bare.__dict__
    assert_close(bare(**made).logits, kind.model()(**made).logits, **CLOSE)


def test_a_user_s_own_hook_survives_pickling_and_unloading():
    model, made = adapted(KINDS["llama"]), text_of(KINDS["llama"])
    again = pickle.loads(pickle.dumps(model))
    seen = []
    again.get_base_model().register_forward_hook(lambda *a: seen.append(1))
    again(**made)
    bare = again.unload()
    bare(**made)
    assert len(seen) == 2


# -- the model's own adapters --------------------------------------------------------------------


@pytest.mark.parametrize("name", THREE)
def test_transformers_own_adapters_are_added_trained_saved_and_loaded(name, tmp_path):
    kind = KINDS[name]
    made = text_of(kind) | ({"labels": batch(kind)["labels"]} if name == "t5" else {})
    kind.model().save_pretrained(tmp_path / "base")
    model = NATIVE[name].from_pretrained(tmp_path / "base").eval()
    bare = model(**made).logits
    model.add_adapter(SMoPConfig(task_type=kind.task_type), "one")
    model.add_adapter(SMoPConfig(task_type=kind.task_type, num_virtual_tokens=2), "two")
    assert {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"two"}
    answers = {}
    for adapter in ("one", "two"):
        model.set_adapter(adapter)
        generator = torch.Generator().manual_seed(len(answers))
        with torch.no_grad():
            for p in model.smop[adapter].parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        answers[adapter] = model(**made).logits
        assert not torch.allclose(answers[adapter], bare)
        model.save_pretrained(tmp_path / adapter)
    model.disable_adapters()
    assert_close(model(**made).logits, bare, **CLOSE)
    for adapter, expected in answers.items():
        again = NATIVE[name].from_pretrained(tmp_path / adapter).eval()
        assert_close(again(**made).logits, expected, **CLOSE)
        if name != "bert":  # PEFT expects a trained head beside it
            peft = PeftModel.from_pretrained(kind.model(), tmp_path / adapter).eval()
            assert_close(peft(**made).logits, expected, **CLOSE)


def test_a_version_1_adapter_through_transformers_own_loader_is_refused_at_use():
    """Its keys are others; what did not arrive is not taken for a start."""
    from pathlib import Path

    from peft_smop.errors import CheckpointError

    model = KINDS["t5"].model()
    model.load_adapter(str(Path(__file__).with_name("version1") / "linear-t5"))
    with pytest.raises(CheckpointError, match=r"never loaded.*PeftModel.from_pretrained"):
        model(**batch(KINDS["t5"]))


# -- one over another ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT:UserWarning")
@pytest.mark.parametrize("outer", [SMoPConfig, BottleneckConfig])
@pytest.mark.parametrize("inner", [SMoPConfig, BottleneckConfig])
def test_wrapping_twice_is_refused_and_says_how_to_add_an_adapter(inner, outer):
    kind = KINDS["t5"]
    model = get_peft_model(kind.model(), inner(task_type=kind.task_type))
    before = model(**batch(kind)).logits
    for what in (model, model.get_base_model()):
        with pytest.raises(ConfigError, match=r"already has adapters .*model\.add_adapter"):
            get_peft_model(what, outer(task_type=kind.task_type), "other")
    assert torch.equal(model(**batch(kind)).logits, before)  # and nothing has changed


@pytest.mark.parametrize("outer", [SMoPConfig, BottleneckConfig])
@pytest.mark.parametrize("inner", [PromptTuningConfig, PrefixTuningConfig])
def test_over_prompts_that_peft_adds_from_outside_it_is_refused(inner, outer):
    kind = KINDS["llama"]
    model = get_peft_model(kind.model(), inner(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ConfigError, match=r"from outside, and would be lost.*get_base_model"):
        get_peft_model(model, outer(task_type="CAUSAL_LM"))


@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT:UserWarning")
@pytest.mark.parametrize("outer", [SMoPConfig, BottleneckConfig])
def test_over_lora_the_lora_stays_frozen_and_active(outer):
    kind, made = KINDS["t5"], batch(KINDS["t5"])
    inner = get_peft_model(kind.model(), LoraConfig(task_type=kind.task_type))
    with torch.no_grad():
        for key, p in inner.named_parameters():
            if "lora_B" in key:
                p.normal_()
    expected = inner(**made).logits
    model = get_peft_model(inner, outer(task_type=kind.task_type))
    with model.disable_adapter():
        assert torch.equal(model(**made).logits, expected)
    model.set_requires_grad("default")
    assert not any("lora" in key for key, p in model.named_parameters() if p.requires_grad)
    model.train()(**made).loss.backward()
    assert not any("lora" in key for key, p in model.named_parameters() if p.grad is not None)
    bare = model.eval().unload()
    assert torch.equal(bare(**made).logits, expected)


# -- encoders of encoder-decoders, and what has no place for a prompt ----------------------------


def test_the_encoder_of_an_encoder_decoder_alone_keeps_its_length():
    model = T5EncoderModel(KINDS["t5"].model().config).eval()
    made = text_of(KINDS["t5"])
    adapted_model = decided(get_peft_model(model, SMoPConfig(task_type="FEATURE_EXTRACTION")))
    assert adapted_model(**made).last_hidden_state.shape[1] == made["input_ids"].shape[1]


def test_a_model_that_carries_its_past_otherwise_is_refused():
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1))
    for unverified in (False, True):
        with pytest.raises(ConfigError, match=r"carries its past in cache_params"):
            get_peft_model(model, SMoPConfig(task_type="CAUSAL_LM", unverified=unverified))


def test_a_type_that_nobody_has_verified_is_refused_unless_it_is_said():
    kind = KINDS["llama"]
    model = kind.model()
    type(model.config).model_type, before = "strange", type(model.config).model_type
    try:
        with pytest.raises(ConfigError, match=r"'strange'.*nobody has tried.*unverified=True"):
            get_peft_model(model, SMoPConfig(task_type="CAUSAL_LM"))
        adapted_model = get_peft_model(model, SMoPConfig(task_type="CAUSAL_LM", unverified=True))
    finally:
        type(model.config).model_type = before
    assert adapted_model(**text_of(kind)).logits.isfinite().all()


# -- caches --------------------------------------------------------------------------------------


def test_another_adapter_s_cache_of_equal_length_is_refused():
    kind = KINDS["llama"]
    model, made = adapted(kind, adapter="a"), text_of(kind)
    model.add_adapter("b", SMoPConfig(task_type=kind.task_type))
    decided(model, "b", seed=9)
    ids, mask = made["input_ids"], torch.ones_like(made["input_ids"])
    cache = model(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
    longer = torch.ones(4, 8, dtype=torch.long)
    more = {"input_ids": ids[:, :1], "attention_mask": longer, "past_key_values": cache}
    with pytest.raises(PromptIgnoredError, match=r"filled for rows of a, and these rows follow b"):
        model(**more, adapter_names=["b"] * 4)
    with pytest.raises(PromptIgnoredError, match="filled for rows of a"):
        model(**more, adapter_names=["a", "b", "a", "a"])
    model(**more)  # its own goes on


def test_classifier_free_guidance_is_refused():
    model, made = adapted(KINDS["llama"]), text_of(KINDS["llama"])
    with pytest.raises(ConfigError, match=r"guidance_scale=1.5 computes a second text"):
        model.generate(**made, **LENGTH, guidance_scale=1.5)
    with pytest.raises(ConfigError, match=r"guidance_scale=1.5"):
        model.get_base_model().generate(**made, **LENGTH, guidance_scale=1.5)
