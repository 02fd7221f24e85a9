"""Saved, loaded, in another process, under another name, on another day."""

import json
import subprocess
import sys

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSeq2SeqLM,
    AutoPeftModelForSequenceClassification,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from peft_smop import SMoPConfig
from peft_smop.errors import CheckpointError, ConfigError
from tiny import KINDS, THREE, adapted, batch, decided

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three backbones, a trained-looking adapter for each, an input and the answer to it."""
    root = tmp_path_factory.mktemp("saved")
    for name in THREE:
        kind, made = KINDS[name], batch(KINDS[name])
        kind.model().save_pretrained(root / name / "backbone")
        model = adapted(kind)
        model.peft_config["default"].base_model_name_or_path = str(root / name / "backbone")
        model.smop_layer["default"].steps.fill_(7)
        model.save_pretrained(root / name / "adapter")
        with torch.no_grad():
            save_file({**made, "logits": model(**made).logits}, root / name / "batch.safetensors")
    return root


def remembered(saved, name):
    made = load_file(saved / name / "batch.safetensors")
    return made, made.pop("logits")


def loaded(saved, name, **options):
    return PeftModel.from_pretrained(
        KINDS[name].model(), saved / name / "adapter", **options
    ).eval()


FRESH = """
import sys, torch, transformers
from pathlib import Path
from safetensors.torch import load_file
import peft_smop
from peft import PeftModel
AUTO = {"t5": "AutoModelForSeq2SeqLM", "llama": "AutoModelForCausalLM",
        "bert": "AutoModelForSequenceClassification"}
for name, auto in AUTO.items():
    root = Path(sys.argv[1]) / name
    made = load_file(root / "batch.safetensors")
    expected = made.pop("logits")
    backbone = getattr(transformers, auto).from_pretrained(root / "backbone")
    model = PeftModel.from_pretrained(backbone, root / "adapter").eval()
    with torch.no_grad():
        logits = model(**made).logits
    print(name, torch.equal(logits, expected), model.smop_layer["default"].steps.item())
"""


def test_a_fresh_process_gives_the_same_output_to_the_last_bit(saved):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRESH, str(saved)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{name} True 7" for name in THREE]


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("t5", AutoPeftModelForSeq2SeqLM),
        ("llama", AutoPeftModelForCausalLM),
        ("bert", AutoPeftModelForSequenceClassification),
    ],
)
def test_peft_s_auto_classes_find_backbone_and_adapter(saved, name, auto):
    made, expected = remembered(saved, name)
    model = auto.from_pretrained(saved / name / "adapter").eval()
    assert torch.equal(model(**made).logits, expected)


@pytest.mark.parametrize("name", THREE)
def test_a_checkpoint_is_safetensors_whose_keys_know_nothing_of_the_backbone_s_path(saved, name):
    assert {path.name for path in (saved / name / "adapter").iterdir()} == {
        WEIGHTS, CONFIG, "README.md",
    }  # fmt: skip
    tensors = load_file(saved / name / "adapter" / WEIGHTS)
    ours = {key: tuple(value.shape) for key, value in tensors.items() if "smop" in key}
    assert ours == {
        "base_model.model.smop.smop_adapters.prompts": (4, 5, 32),
        "base_model.model.smop.smop_adapters.router": (32, 4),
        "base_model.model.smop.smop_adapters.steps": (),
        "base_model.model.smop.smop_adapters.settings": (),
    }
    others = set(tensors) - set(ours)
    expected = {f"base_model.model.classifier.{part}" for part in ("weight", "bias")}
    assert others == (expected if name == "bert" else set())
    assert all(
        tensors[key].dtype == torch.float32
        for key in tensors
        if not key.endswith((".steps", ".settings"))
    )


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("name", THREE)
def test_it_loads_under_another_name_and_without_spare_memory(saved, name, low_cpu_mem_usage):
    made, expected = remembered(saved, name)
    model = loaded(saved, name, adapter_name="other", low_cpu_mem_usage=low_cpu_mem_usage)
    assert list(model.peft_config) == ["other"]
    assert not any(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())
    assert torch.equal(model(**made).logits, expected)
    model.load_adapter(saved / name / "adapter", "third", low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(model(**made).logits, expected)
    model.set_adapter("third")
    assert torch.equal(model(**made).logits, expected)
    assert model.last_routes.adapters == ("third",) * 4
    model.delete_adapter("other")
    assert torch.equal(model(**made).logits, expected)


@pytest.mark.parametrize("name", THREE)
def test_loaded_for_inference_it_is_frozen_and_loaded_for_training_it_is_not(saved, name):
    def trainable(model):
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    assert trainable(loaded(saved, name)) == 0
    assert loaded(saved, name).peft_config["default"].inference_mode is True
    expected = 4 * 5 * 32 + 32 * 4 + (66 if name == "bert" else 0)
    model = loaded(saved, name, is_trainable=True)
    assert trainable(model) == expected
    assert model.peft_config["default"].inference_mode is False


def test_several_adapters_are_saved_side_by_side_or_by_choice(tmp_path):
    kind = KINDS["t5"]
    model = adapted(kind)
    model.add_adapter("other", SMoPConfig(task_type=kind.task_type, num_virtual_tokens=3))
    model.save_pretrained(tmp_path / "both")
    assert (tmp_path / "both" / WEIGHTS).is_file()
    assert (tmp_path / "both" / "other" / WEIGHTS).is_file()
    model.save_pretrained(tmp_path / "one", selected_adapters=["other"])
    assert not (tmp_path / "one" / WEIGHTS).exists()
    shape = load_file(tmp_path / "one" / "other" / WEIGHTS)[
        "base_model.model.smop.smop_adapters.prompts"
    ]
    assert shape.shape == (4, 3, 32)


def test_the_configuration_comes_back_as_it_went(tmp_path):
    config = SMoPConfig(
        task_type="CAUSAL_LM",
        num_prompts=3,
        num_virtual_tokens=2,
        perturbation=False,
        router_scope="input",
        init="normal",
        init_std=0.25,
        seed=9,
        modules_to_save=["lm_head"],
    )
    config.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(again, SMoPConfig)
    assert again == config
    assert SMoPConfig.from_pretrained(tmp_path) == config
    written = json.loads((tmp_path / CONFIG).read_text())
    assert written["peft_type"] == "SMOP"
    assert written["format_version"] == 2
    assert (written["num_prompts"], written["num_virtual_tokens"]) == (3, 2)


@pytest.mark.parametrize("options", [{}, {"routing": "single"}, {"num_prompts": 1}])
def test_defaults_that_were_filled_in_are_written_down_and_read_again(options, tmp_path):
    config = SMoPConfig(task_type="SEQ_2_SEQ_LM", **options)
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config


def changed(saved, tmp_path, **fields):
    """A copy of the saved T5 adapter with other words in its configuration."""
    config = json.loads((saved / "t5" / "adapter" / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, **fields}))
    (tmp_path / WEIGHTS).write_bytes((saved / "t5" / "adapter" / WEIGHTS).read_bytes())
    return tmp_path


def test_a_newer_format_is_refused(saved, tmp_path):
    with pytest.raises(ConfigError, match=r"format_version=3 is newer .* upgrade peft-smop"):
        PeftModel.from_pretrained(KINDS["t5"].model(), changed(saved, tmp_path, format_version=3))


def test_weights_that_do_not_fit_the_configuration_are_an_error(saved, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"has prompts .* shape \(4, 5, 32\); expected .*3, 5"
    ):
        PeftModel.from_pretrained(KINDS["t5"].model(), changed(saved, tmp_path, num_prompts=3))


def test_a_backbone_of_another_width_is_an_error(saved):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=100, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8)
    with pytest.raises(CheckpointError, match=r"shape \(4, 5, 32\); expected .*\(4, 5, 16\)"):
        PeftModel.from_pretrained(T5ForConditionalGeneration(config), saved / "t5" / "adapter")


@pytest.mark.parametrize("missing", ["prompts", "router"])
def test_a_checkpoint_without_prompts_or_router_is_refused(saved, tmp_path, missing):
    directory = changed(saved, tmp_path)
    tensors = load_file(directory / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if missing not in k}, directory / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"has no {missing}; expected prompts, router"):
        PeftModel.from_pretrained(KINDS["t5"].model(), directory)


def test_the_state_dict_functions_of_peft_round_trip():
    kind = KINDS["bert"]
    model, made = adapted(kind), batch(kind)
    expected = model(**made).logits
    state = get_peft_model_state_dict(model)
    other = get_peft_model(kind.model(seed=0), SMoPConfig(task_type=kind.task_type, seed=1)).eval()
    assert not torch.equal(other(**made).logits, expected)
    result = set_peft_model_state_dict(other, state)
    assert result.unexpected_keys == []
    assert torch.equal(other(**made).logits, expected)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_an_adapter_moves_between_tasks_of_one_backbone(name, tmp_path):
    """Keys do not name the path of the backbone, so another head finds its prompt."""
    from transformers import LlamaModel, T5EncoderModel

    kind, made = KINDS[name], batch(KINDS[name])
    tokens = {key: value for key, value in made.items() if key != "labels"}
    model = adapted(kind)
    model.save_pretrained(tmp_path)
    part = {"t5": T5EncoderModel, "llama": LlamaModel}[name]
    bare = part(kind.model().config).eval()
    whole = kind.model() if name == "t5" else kind.model().model
    bare.load_state_dict(whole.state_dict(), strict=False)
    again = PeftModel.from_pretrained(
        bare, tmp_path, config=SMoPConfig(task_type="FEATURE_EXTRACTION", inference_mode=True)
    ).eval()
    if name == "t5":
        expected = model(**made).encoder_last_hidden_state[:, 5:]
        keep = made["attention_mask"].bool()
        keep[2] = False  # there the prompt stands behind the padding
        assert_close(again(**tokens).last_hidden_state[keep], expected[keep])
    else:
        expected = model(**made, output_hidden_states=True).hidden_states[-1]
        assert_close(again(**tokens).last_hidden_state, expected)


@pytest.mark.parametrize("name", THREE)
def test_on_a_bf16_backbone_prompts_stay_fp32_and_outputs_are_bf16(name, tmp_path):
    kind, made = KINDS[name], batch(KINDS[name])
    model = decided(
        get_peft_model(kind.model().to(torch.bfloat16), SMoPConfig(task_type=kind.task_type))
    )
    output = model(**made).logits
    assert output.dtype == torch.bfloat16
    assert model.smop_layer["default"].prompts.dtype == torch.float32
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / WEIGHTS)["base_model.model.smop.smop_adapters.prompts"].dtype == (
        torch.float32
    )
    again = PeftModel.from_pretrained(kind.model().to(torch.bfloat16), tmp_path).eval()
    assert torch.equal(again(**made).logits, output)
    assert again.smop_layer["default"].router.dtype == torch.float32


def test_casting_the_whole_model_afterwards_still_computes():
    """`model.bfloat16()` casts prompts as well; the output follows the backbone's precision."""
    kind = KINDS["llama"]
    model, made = adapted(kind), batch(kind)
    assert model.bfloat16()(**made).logits.dtype == torch.bfloat16


def test_the_adapter_of_a_bf16_backbone_answers_alike_on_an_fp32_one(tmp_path):
    kind, made = KINDS["t5"], batch(KINDS["t5"])
    model = adapted(kind)
    expected = model(**made).logits
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(kind.model().to(torch.bfloat16), tmp_path).eval()
    assert_close(again(**made).logits.float(), expected, rtol=0.1, atol=0.1)


def test_the_weights_may_not_be_saved_in_pickle_by_mistake_and_load_all_the_same(tmp_path):
    """PEFT can be asked for its old format; what it wrote it reads."""
    kind, made = KINDS["t5"], batch(KINDS["t5"])
    model = adapted(kind)
    expected = model(**made).logits
    model.save_pretrained(tmp_path, safe_serialization=False)
    again = PeftModel.from_pretrained(kind.model(), tmp_path).eval()
    assert torch.equal(again(**made).logits, expected)


def test_the_model_card_names_the_method_s_library(tmp_path):
    adapted(KINDS["t5"]).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in card
