"""Where the device's memory does not hold a batch, it is computed in parts, to the same result."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from peft_smop.errors import RunError
from peft_smop.lab import RunSpec, run


def spec(task, **method):
    calm = {"optimizer": "adamw_torch", "learning_rate": 1e-3}
    return RunSpec.of(
        {
            "task": str(task),
            "model": "embedded",
            "method": {"name": "smop", **method},
            "training": {"max_steps": 4, "eval_steps": 2, "batch_size": 8, **calm},
        }
    )


def memory_for(monkeypatch, rows):
    """A device that holds so many rows in a pass."""
    steps = sys.modules["peft_smop.training.steps"]
    told = steps.told
    asked = []

    def in_training(model, features):
        asked.append(len(features))
        if len(features) > rows:
            raise torch.OutOfMemoryError("no room")
        return told(model, features)

    evaluation = sys.modules["peft_smop.scoring.evaluation"]
    own = evaluation.told

    def in_scoring(model, features):
        if len(features) > rows:
            raise torch.OutOfMemoryError("no room")
        return own(model, features)

    monkeypatch.setattr(steps, "told", in_training)
    monkeypatch.setattr(evaluation, "told", in_scoring)
    return asked


@pytest.mark.parametrize("routing", [None, "posterior"])
def test_a_run_ends_as_with_memory_for_all_rows(small_medley, tmp_path, monkeypatch, routing):
    wanted = spec(small_medley, routing=routing)
    whole = run(wanted, tmp_path / "whole")
    asked = memory_for(monkeypatch, 3)
    parts = run(wanted, tmp_path / "parts")
    refused = [rows for rows in asked if rows > 3]
    assert 1 <= len(refused) <= 2  # what does not fit is not tried again in every step
    assert max(asked[asked.index(refused[-1]) + 1 :]) <= 3
    assert parts.test.loss == pytest.approx(whole.test.loss, rel=1e-4)
    one, other = (
        load_file(next((tmp_path / name / "adapter").glob("*.safetensors")))
        for name in ("whole", "parts")
    )
    for name, tensor in one.items():
        assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)


def test_no_memory_for_one_row_is_one_sentence(small_medley, tmp_path, monkeypatch):
    memory_for(monkeypatch, 0)
    with pytest.raises(RunError, match="does not hold a step of 1 rows; use --gradient-check"):
        run(spec(small_medley), tmp_path / "run")


def test_rows_that_see_each_other_are_not_divided(small_medley, tmp_path, monkeypatch):
    memory_for(monkeypatch, 3)
    with pytest.raises(RunError, match=r"see each other, so that it cannot be divided"):
        run(spec(small_medley, routing="released"), tmp_path / "run")
