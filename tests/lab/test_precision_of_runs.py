"""A run goes on, and is looked at, in the precision that its backbone was first loaded in."""

import pytest
import torch
from killed import killed_after

from peft_smop.lab import RunSpec, load_trained, run
from peft_smop.methods import backbones


def on_a_cpu(monkeypatch, *, units):
    """One for which every backbone is large, with units for bf16 or without."""
    monkeypatch.setattr(backbones, "LARGE_FOR_A_CPU", 1)
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": units}, raising=False
    )


@pytest.mark.parametrize("began_with_units", [True, False])
def test_a_run_that_moves_to_another_cpu_keeps_its_precision(
    toy_task, saved_models, tmp_path, monkeypatch, began_with_units
):
    wanted = RunSpec.of(
        {
            "task": str(toy_task),
            "model": saved_models["llama"],
            "method": {"name": "single"},
            "training": {"max_steps": 6, "eval_steps": 3, "batch_size": 8},
        }
    )
    on_a_cpu(monkeypatch, units=began_with_units)
    with monkeypatch.context() as patched:
        killed_after(patched, 4)
        with pytest.raises(KeyboardInterrupt):
            run(wanted, tmp_path)
    on_a_cpu(monkeypatch, units=not began_with_units)
    result = run(wanted, tmp_path, resume=True)
    assert result.environment["precision"] == ("bfloat16" if began_with_units else "float32")
    # asked again, it is the same run
    assert run(wanted, tmp_path, resume=True) == result


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("now", [True, False])
def test_a_finished_run_is_exact_where_it_was_and_bf16_only_where_that_is_fast(
    toy_task, saved_models, tmp_path, monkeypatch, before, now
):
    training = {"max_steps": 2, "eval_steps": 2, "batch_size": 4}
    content = {"task": str(toy_task), "model": saved_models["llama"], "training": training}
    on_a_cpu(monkeypatch, units=before)
    run(RunSpec.of({**content, "method": {"name": "single"}}), tmp_path)
    on_a_cpu(monkeypatch, units=now)
    found = load_trained(tmp_path).model.get_base_model().dtype
    assert found == (torch.bfloat16 if before and now else torch.float32)
