"""Adapters written by version 1 of the format are read as they were."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.testing import assert_close

from peft_smop.methods import load_adapter
from tiny import KINDS, batch

FOLDER = Path(__file__).with_name("version1")
CASES = sorted(folder.name for folder in FOLDER.iterdir())


@pytest.mark.parametrize("by", ["PEFT", "the package's loader"])
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_of_version_1_answers_and_routes_as_it_did(case, by, tmp_path):
    kind = KINDS[case.rsplit("-", 1)[1]]
    load = PeftModel.from_pretrained if by == "PEFT" else load_adapter
    model = load(kind.model(), FOLDER / case).eval()
    expected = load_file(FOLDER / case / "expected.safetensors")
    with torch.no_grad():
        assert_close(model(**batch(kind)).logits, expected["logits"], rtol=1e-4, atol=1e-5)
    assert torch.equal(model.last_routes.indices, expected["routes"])
    assert model.smop_layer["default"].steps == 7
    # saved again it is of the newest format, and answers the same to the last bit
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(kind.model(), tmp_path).eval()
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert not any("smop_prompts" in key or "smop_routers" in key for key in keys)
    assert again.peft_config["default"].format_version == 2
    with torch.no_grad():
        assert torch.equal(again(**batch(kind)).logits, model(**batch(kind)).logits)
