"""Saved, loaded, in another process, under another name."""

import json
import subprocess
import sys

import pytest
import torch
from bottlenecks import ATTENTION, FEED_FORWARD, adapted, config, tensors
from peft import (
    AutoPeftModelForSeq2SeqLM,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file

from peft_smop.bottleneck import BottleneckConfig
from peft_smop.errors import ConfigError
from tiny import KINDS, THREE, batch

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
        model = adapted(kind, activation="gelu", seed=3)
        model.peft_config["default"].base_model_name_or_path = str(root / name / "backbone")
        model.save_pretrained(root / name / "adapter")
        with torch.no_grad():
            save_file({**made, "logits": model(**made).logits}, root / name / "batch.safetensors")
    return root


def remembered(saved, name):
    made = load_file(saved / name / "batch.safetensors")
    return made, made.pop("logits")


FRESH = """
import sys, torch, transformers
from pathlib import Path
from safetensors.torch import load_file
import peft_smop.bottleneck
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
        print(name, torch.equal(model(**made).logits, expected))
"""


def test_a_fresh_process_gives_the_same_output_to_the_last_bit(saved):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRESH, str(saved)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{name} True" for name in THREE]


def test_peft_s_auto_class_finds_backbone_and_adapter(saved):
    made, expected = remembered(saved, "t5")
    model = AutoPeftModelForSeq2SeqLM.from_pretrained(saved / "t5" / "adapter").eval()
    assert torch.equal(model(**made).logits, expected)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("name", THREE)
def test_it_loads_under_another_name_and_without_spare_memory(saved, name, low_cpu_mem_usage):
    made, expected = remembered(saved, name)
    model = PeftModel.from_pretrained(
        KINDS[name].model(),
        saved / name / "adapter",
        adapter_name="other",
        low_cpu_mem_usage=low_cpu_mem_usage,
    ).eval()
    assert not any(p.is_meta or p.requires_grad for p in model.parameters())
    assert torch.equal(model(**made).logits, expected)
    model.load_adapter(saved / name / "adapter", "third", low_cpu_mem_usage=low_cpu_mem_usage)
    model.set_adapter("third")
    model.delete_adapter("other")
    assert torch.equal(model(**made).logits, expected)


@pytest.mark.parametrize("name", THREE)
def test_without_spare_memory_an_adapter_is_created_without_values(name):
    kind = KINDS[name]
    model = get_peft_model(kind.model(), config(kind), low_cpu_mem_usage=True)
    assert all(p.is_meta for p in tensors(model).values())


@pytest.mark.parametrize("name", THREE)
def test_a_checkpoint_holds_the_bottlenecks_and_what_was_trained_beside_them(saved, name):
    stored = load_file(saved / name / "adapter" / WEIGHTS)
    shapes = {"down.weight": (4, 32), "down.bias": (4,), "up.weight": (32, 4), "up.bias": (32,)}
    expected = {
        f"base_model.model.{place}.bottleneck_{part}": shape
        for place in ATTENTION[name] + FEED_FORWARD[name]
        for part, shape in shapes.items()
    }
    if name == "bert":
        expected["base_model.model.classifier.weight"] = (2, 32)
        expected["base_model.model.classifier.bias"] = (2,)
    assert {key: tuple(value.shape) for key, value in stored.items()} == expected


@pytest.mark.parametrize("name", THREE)
def test_loaded_for_training_it_is_trainable(saved, name):
    model = PeftModel.from_pretrained(
        KINDS[name].model(), saved / name / "adapter", is_trainable=True
    )
    places = len(ATTENTION[name] + FEED_FORWARD[name])
    expected = places * (2 * 32 * 4 + 4 + 32) + (66 if name == "bert" else 0)
    assert model.get_nb_trainable_parameters()[0] == expected


@pytest.mark.parametrize("name", THREE)
def test_on_a_bf16_backbone_the_fp32_adapter_comes_back_to_the_last_bit(name, tmp_path):
    kind, made = KINDS[name], batch(KINDS[name])
    model = PeftModel.from_pretrained(kind.model().bfloat16(), _save(adapted(kind), tmp_path))
    again = PeftModel.from_pretrained(kind.model().bfloat16(), _save(model, tmp_path / "again"))
    found = tensors(again)
    assert {p.dtype for p in found.values()} == {torch.float32}
    assert all(torch.equal(p, found[key]) for key, p in tensors(adapted(kind)).items())
    assert torch.equal(again.eval()(**made).logits, model.eval()(**made).logits)


def _save(model, folder):
    model.save_pretrained(folder)
    return folder


def test_the_state_dict_functions_of_peft_round_trip():
    kind, made = KINDS["bert"], batch(KINDS["bert"])
    model = adapted(kind)
    other = get_peft_model(kind.model(), config(kind, seed=1)).eval()
    result = set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    assert result.unexpected_keys == []
    assert torch.equal(other(**made).logits, model(**made).logits)


def test_the_configuration_comes_back_as_it_went(tmp_path):
    given = BottleneckConfig(
        task_type="CAUSAL_LM",
        bottleneck_size=7,
        placement="pfeiffer",
        activation="silu",
        target_modules=["o_proj", "down_proj"],
        modules_to_save=["lm_head"],
        seed=9,
    )
    given.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(again, BottleneckConfig)
    assert again == given
    written = json.loads((tmp_path / CONFIG).read_text())
    assert written["peft_type"] == "BOTTLENECK"
    assert written["format_version"] == 1


def changed(saved, tmp_path, **fields):
    """A copy of the saved T5 adapter with other words in its configuration."""
    written = json.loads((saved / "t5" / "adapter" / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**written, **fields}))
    (tmp_path / WEIGHTS).write_bytes((saved / "t5" / "adapter" / WEIGHTS).read_bytes())
    return tmp_path


def test_a_newer_format_is_refused(saved, tmp_path):
    with pytest.raises(ConfigError, match=r"format_version=2 is newer .* upgrade peft-smop"):
        PeftModel.from_pretrained(KINDS["t5"].model(), changed(saved, tmp_path, format_version=2))


def test_weights_that_do_not_fit_the_configuration_are_an_error(saved, tmp_path):
    with pytest.raises(RuntimeError, match="size mismatch"):
        PeftModel.from_pretrained(KINDS["t5"].model(), changed(saved, tmp_path, bottleneck_size=3))
