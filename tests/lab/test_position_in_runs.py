"""Prompts behind their texts in whole runs: trained, scored, loaded, killed and resumed."""

import json

import pytest
import torch
from killed import killed_and_resumed

from peft_smop.errors import ConfigError
from peft_smop.lab import RunSpec, load_trained, run
from peft_smop.scoring import predict
from peft_smop.tasks import load_task

METHODS = {
    "single": {"name": "single", "position": "after"},
    "smop": {"position": "after", "num_prompts": 3},
    "posterior": {"position": "after", "num_prompts": 3, "routing": "posterior", "judged": 1.0},
}


def spec(task, model, method, **training):
    quick = {"max_steps": 9, "eval_steps": 3, "batch_size": 8, "precision": "fp32"}
    return RunSpec.of(
        {
            "task": str(task),
            "model": model,
            "method": METHODS[method],
            "training": {**quick, **training},
        }
    )


@pytest.mark.parametrize("keep_texts", [0.0, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_and_resumed_run_ends_as_one_never_killed(
    toy_task, saved_models, tmp_path, monkeypatch, method, keep_texts
):
    wanted = spec(toy_task, saved_models["llama"], method, keep_texts=keep_texts)
    (whole, resumed), (one, other) = killed_and_resumed(monkeypatch, wanted, tmp_path)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert whole.test == resumed.test


def test_so_does_one_in_bf16(toy_task, saved_models, tmp_path, monkeypatch):
    wanted = spec(toy_task, saved_models["llama"], "posterior", keep_texts=1.0, precision="bf16")
    (whole, resumed), (one, other) = killed_and_resumed(monkeypatch, wanted, tmp_path)
    assert whole.environment["precision"] == "bfloat16"
    assert whole.environment["attention"] == "sdpa"
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert whole.test == resumed.test


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_what_was_trained_behind_its_text_is_loaded_behind_it(
    toy_task, saved_models, tmp_path, method, precision
):
    wanted = spec(toy_task, saved_models["llama"], method, precision=precision)
    run(wanted, tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    _, split = load_task(toy_task)
    found = predict(trained.model, trained.formulation, split.test)
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert [trained.task.labels[p.label] for p in found] == [
        json.loads(line)["prediction"] for line in lines
    ]


def test_texts_are_kept_only_where_a_prompt_stands_behind_them(toy_task, saved_models, tmp_path):
    for kind, name in (("llama", "smop"), ("llama", "lora"), ("bert", "smop")):
        wanted = RunSpec.of(
            {
                "task": str(toy_task),
                "model": saved_models[kind],
                "method": {"name": name},
                "training": {"max_steps": 1, "keep_texts": 1.0},
            }
        )
        with pytest.raises(ConfigError, match=r"for prompts behind their texts, on decoders"):
            run(wanted, tmp_path / f"{kind}-{name}")


def test_what_has_no_answer_behind_its_text_is_refused(small_medley, tmp_path):
    wanted = RunSpec.of(
        {"task": str(small_medley), "model": "embedded", "method": {"position": "after"}}
    )
    with pytest.raises(ConfigError, match="position='after' is for causal LMs"):
        run(wanted, tmp_path / "run")
