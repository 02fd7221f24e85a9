"""Half an adapter, an altered one, or one that is loaded over another is never taken for whole."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from peft_smop import SMoPConfig
from peft_smop.errors import CheckpointError, ConfigError, SMoPError
from tiny import KINDS, adapted, batch, decided

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = "base_model.model.smop.smop_adapters."


@pytest.fixture
def saved(tmp_path):
    adapted(KINDS["t5"]).save_pretrained(tmp_path)
    return tmp_path


def altered(tensors, how):
    prompts = tensors[KEY + "prompts"]
    more = {
        "int8 prompts": {"prompts": prompts.to(torch.int8)},
        "int8 router": {"router": tensors[KEY + "router"].to(torch.int8)},
        "steps as numbers with a point": {"steps": torch.tensor(2.0)},
        "another tensor": {"scale": torch.ones(3)},
        "a network": {"network.down.weight": torch.ones(6, 32)},
        "prompts of another shape": {"prompts": prompts[:3]},
    }
    if how.startswith("no "):
        return {k: v for k, v in tensors.items() if not k.endswith(how.removeprefix("no "))}
    if how == "nothing":
        return {"something.else": torch.ones(1)}
    return {**tensors, **{KEY + name: value.clone() for name, value in more[how].items()}}


REFUSED = {
    "no router": "has no router; expected prompts, router",
    "no prompts": "has no prompts",
    "no steps": "has no steps",
    "nothing": "has no prompts, router, settings, steps; expected prompts",
    "int8 prompts": r"has prompts of torch.int8 .*; expected torch.float32",
    "int8 router": r"has router of torch.int8",
    "steps as numbers with a point": r"has steps of torch.float32 .*expected torch.int64",
    "another tensor": "has an unexpected scale",
    "a network": "has an unexpected network.down.weight",
    "prompts of another shape": r"shape \(3, 5, 32\); expected .*\(4, 5, 32\)",
}


@pytest.mark.parametrize("low", [False, True], ids=["", "low memory"])
@pytest.mark.parametrize("how", REFUSED)
def test_half_an_adapter_is_refused(saved, how, low):
    save_file(altered(load_file(saved / WEIGHTS), how), saved / WEIGHTS)
    with pytest.raises(CheckpointError, match=REFUSED[how]):
        PeftModel.from_pretrained(KINDS["t5"].model(), saved, low_cpu_mem_usage=low)


@pytest.mark.parametrize("low", [False, True], ids=["", "low memory"])
@pytest.mark.parametrize(
    "stranger", ["lm_head.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"]
)
def test_an_adapter_replaces_no_weight_of_the_model(saved, stranger, low):
    """PEFT would load whatever bears the name of a weight, for every other adapter too."""
    base = KINDS["t5"].model()
    before = base.get_parameter(stranger).clone()
    key = f"base_model.model.{stranger}"
    save_file({**load_file(saved / WEIGHTS), key: torch.ones_like(before)}, saved / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"'default' has {key}, .* modules_to_save"):
        PeftModel.from_pretrained(base, saved, low_cpu_mem_usage=low)
    assert torch.equal(base.get_parameter(stranger), before)


def test_a_head_that_the_configuration_does_not_list_is_refused_and_one_that_it_lists_is_not(
    tmp_path,
):
    kind = KINDS["bert"]
    model = adapted(kind, modules_to_save=["classifier"])
    with torch.no_grad():
        model.get_base_model().classifier.modules_to_save["default"].weight.fill_(0.5)
    model.save_pretrained(tmp_path)
    expected = model(**batch(kind)).logits
    again = PeftModel.from_pretrained(kind.model(), tmp_path, adapter_name="other")
    assert_close(again.eval()(**batch(kind)).logits, expected)
    words = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(words | {"modules_to_save": None, "task_type": None}))
    with pytest.raises(CheckpointError, match=r"classifier\.weight.* modules_to_save"):
        PeftModel.from_pretrained(kind.model(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"routing": "gumbel", "perturbation": None, "top_k": None, "router_dropout": None},
            "other op",
        ),
        ({"perturbation": False}, "trained with other options"),
        ({"temperature": 2.0}, "trained with other options"),
        ({"num_prompts": 10**9}, "num_prompts=1000000000 prompts .* exceed 8 GiB"),
        ({"num_virtual_tokens": 10**9}, "1000000000 virtual tokens.* exceed 8 GiB"),
        ({"routing": "single", "num_prompts": 1}, "contradicts routing='single'|other options"),
        ({"seed": -1}, "seed=-1"),
        ({"format_version": 99}, "newer than this peft-smop reads"),
    ],
)
def test_an_altered_configuration_is_refused(saved, change, message):
    words = json.loads((saved / CONFIG).read_text()) | change
    (saved / CONFIG).write_text(json.dumps(words))
    with pytest.raises(SMoPError, match=message):
        PeftModel.from_pretrained(KINDS["t5"].model(), saved)


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments:UserWarning")
@pytest.mark.parametrize("kind", ["LORA", "BOTTLENECK", "PROMPT_TUNING", "NOPE"])
def test_a_configuration_of_another_kind_loads_nothing(saved, kind):
    words = json.loads((saved / CONFIG).read_text()) | {"peft_type": kind}
    (saved / CONFIG).write_text(json.dumps(words))
    from peft_smop.methods import load_adapter

    with pytest.raises(SMoPError, match=r"adapter_(config|model)|does not fit"):
        load_adapter(KINDS["t5"].model(), saved)


def test_an_adapter_with_other_options_is_not_loaded_over_an_existing_one(saved):
    """PEFT would take the tensors, and drop the options by which they were trained."""
    model = adapted(KINDS["t5"], perturbation=False)
    with pytest.raises(CheckpointError, match=r"other options than those of 'default'.*own"):
        model.load_adapter(saved, "default")
    made = batch(KINDS["t5"])
    same = adapted(KINDS["t5"])
    expected = same(**made).logits
    with torch.no_grad():
        same.smop_layer["default"].prompts.zero_()
    same.load_adapter(saved, "default")  # its own come back
    assert_close(same.eval()(**made).logits, expected)


def test_a_saved_configuration_without_its_tensors_does_not_answer(saved):
    """By whichever way it came to be; started anew on purpose, it does."""
    kind = KINDS["t5"]
    config = SMoPConfig.from_pretrained(saved)
    model = get_peft_model(kind.model(), config)
    with pytest.raises(CheckpointError, match=r"never loaded.*is_initialised=False"):
        model(**batch(kind))
    with pytest.raises(CheckpointError, match="never loaded"):
        model.generate(input_ids=batch(kind)["input_ids"], max_new_tokens=1)
    anew = SMoPConfig.from_pretrained(saved)
    anew.is_initialised = anew.awaits_values = False
    assert get_peft_model(kind.model(), anew)(**batch(kind)).logits.isfinite().all()


def test_an_adapter_created_without_values_does_not_answer():
    kind = KINDS["t5"]
    config = SMoPConfig(task_type=kind.task_type)
    model = get_peft_model(kind.model(), config, low_cpu_mem_usage=True)
    with pytest.raises(CheckpointError, match="never loaded"):
        model(**batch(kind))


def test_a_backbone_whose_weights_are_offloaded_is_adapted_all_the_same(tmp_path):
    from accelerate import cpu_offload

    kind, made = KINDS["llama"], batch(KINDS["llama"])
    expected = adapted(kind)(**made).logits
    base = kind.model()
    cpu_offload(base)
    assert base.get_input_embeddings().weight.device.type == "meta"
    model = get_peft_model(base, SMoPConfig(task_type=kind.task_type))
    start = get_peft_model(kind.model(), SMoPConfig(task_type=kind.task_type))
    assert torch.equal(model.smop_layer["default"].prompts, start.smop_layer["default"].prompts)
    generator = torch.Generator().manual_seed(5)
    spread = kind.model().get_input_embeddings().weight.detach().float().std()
    with torch.no_grad():
        adapter = model.smop_layer["default"]
        adapter.prompts.copy_(torch.randn(adapter.prompts.shape, generator=generator) * spread * 2)
        adapter.router.copy_(torch.randn(adapter.router.shape, generator=generator) / spread)
        assert_close(model.eval()(**made).logits, expected, rtol=1e-4, atol=1e-5)


# -- options that would be dropped ---------------------------------------------------------------


def test_unknown_adapters_are_not_trained_in_silence():
    model = adapted(KINDS["t5"])
    with pytest.raises(ConfigError, match="no adapter 'defualt' to train; known: default"):
        model.set_requires_grad(["defualt"])


@pytest.mark.filterwarnings("ignore:Adapter name .* should not be contained:UserWarning")
@pytest.mark.parametrize("name", ["", "a.b", "__base__", "prompts", "keys"])
def test_a_name_that_could_not_be_asked_for_is_refused(name):
    kind = KINDS["t5"]
    with pytest.raises(ConfigError, match="adapter_name="):
        get_peft_model(kind.model(), SMoPConfig(task_type=kind.task_type), adapter_name=name)
    model = adapted(kind)
    with pytest.raises(ConfigError, match="adapter_name="):
        model.add_adapter(name, SMoPConfig(task_type=kind.task_type))
    assert list(model.peft_config) == ["default"]
    decided(model)(**batch(kind))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("default", "must be a list with one adapter's name"),
        ([0, 0, 0, 0], "has 0, which is no text"),
        (["default", None, "default", "default"], "has None, which is no text"),
        (["default"] * 3, "3 entries for a batch of 4 rows"),
        (["default"] * 8, "8 entries for a batch of 4 rows"),
        (["other"] * 4, "unknown adapters other; known: default, __base__"),
        ([], "0 entries for a batch of 4 rows"),
    ],
)
@pytest.mark.parametrize("how", ["forward", "generate"])
def test_names_that_a_batch_cannot_follow_are_refused(names, message, how):
    model, made = adapted(KINDS["llama"]), batch(KINDS["llama"])
    with pytest.raises(ConfigError, match=message):
        getattr(model, how)(**made, adapter_names=names)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_embeddings_that_peft_saves_after_a_resize_are_those_of_the_same_model(name, tmp_path):
    """A run that saves and loads its own state goes on; another model is not given them."""
    base = KINDS[name].model()
    base.resize_token_embeddings(base.config.vocab_size + 8)
    model = get_peft_model(base, SMoPConfig(task_type=KINDS[name].task_type))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any("smop_adapters" not in key for key in load_file(tmp_path / WEIGHTS))
    model.load_adapter(tmp_path, "again")
    made = batch(KINDS[name])
    expected = model.eval()(**made).logits
    model.set_adapter("again")
    assert torch.equal(model(**made).logits, expected)
    other = KINDS[name].model(seed=1)
    other.resize_token_embeddings(other.config.vocab_size + 8)
    with pytest.raises(CheckpointError, match="after resizing a vocabulary, save the resized"):
        PeftModel.from_pretrained(other, tmp_path)
