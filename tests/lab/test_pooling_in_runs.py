"""What a head reads in whole runs: what its model says, what was asked for, or the first token."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from killed import killed_and_resumed

from peft_smop.errors import ConfigError
from peft_smop.lab import RunSpec, load_trained, run, signs_of
from peft_smop.methods import declared_pooling
from peft_smop.methods.sources import POOLING
from peft_smop.scoring import predict
from peft_smop.tasks import load_task

MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.fixture(scope="module")
def sentences(saved_models, tmp_path_factory):
    """A sentence transformer: an encoder that says that it is read by its mean."""
    folder = Path(shutil.copytree(saved_models["bert"], tmp_path_factory.mktemp("st") / "bert"))
    (folder / POOLING).parent.mkdir()
    (folder / POOLING).write_text(json.dumps(MEAN | {"word_embedding_dimension": 32}))
    return str(folder)


def spec(task, model, method="single", *, pooling=None, **training):
    quick = {"max_steps": 9, "eval_steps": 3, "batch_size": 8}
    named = {"name": method} if pooling is None else {"name": method, "pooling": pooling}
    return RunSpec.of(
        {"task": str(task), "model": model, "method": named, "training": {**quick, **training}}
    )


def read_by(directory):
    return json.loads((directory / "adapter" / "adapter_config.json").read_text()).get("pooling")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (MEAN, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "own"),
        (MEAN | {"pooling_mode_max_tokens": True}, "own"),  # both, joined
        ({}, "own"),
        ([1], "own"),
        ("no JSON", "own"),
        (None, "own"),
    ],
)
def test_what_a_model_says_of_its_pooling(saved_models, tmp_path, said, expected):
    folder = Path(shutil.copytree(saved_models["bert"], tmp_path / "bert"))
    if said is not None:
        (folder / POOLING).parent.mkdir()
        (folder / POOLING).write_text(said if isinstance(said, str) else json.dumps(said))
    assert declared_pooling(str(folder)) == expected


@pytest.mark.parametrize(
    ("method", "asked", "recipe", "expected"),
    [
        ("single", None, "default", "mean"),
        ("smop", None, "default", "mean"),
        ("single", "own", "default", "own"),
        ("single", None, "paper", "own"),
        ("single", "mean", "paper", "mean"),
        ("lora", None, "default", None),
    ],
)
def test_a_run_reads_it_so_and_says_it(
    toy_task, sentences, tmp_path, method, asked, recipe, expected
):
    wanted = spec(toy_task, sentences, method, pooling=asked, recipe=recipe, max_steps=2)
    result = run(wanted, tmp_path / "run")
    assert read_by(tmp_path / "run") == expected
    assert result.method["pooling"] == ("mean" if expected == "mean" else asked)
    assert RunSpec.load(tmp_path / "run" / "spec.yaml").pooled == (expected or "own")
    assert run(wanted, tmp_path / "run", resume=True) == result


def test_a_model_that_says_nothing_is_read_as_it_is(toy_task, saved_models, tmp_path):
    result = run(spec(toy_task, saved_models["bert"], max_steps=2), tmp_path / "run")
    assert read_by(tmp_path / "run") == "own"
    assert result.method["pooling"] is None


def test_a_killed_and_resumed_run_ends_as_one_never_killed(
    toy_task, sentences, tmp_path, monkeypatch
):
    wanted = spec(toy_task, sentences, "smop")
    (whole, resumed), (one, other) = killed_and_resumed(monkeypatch, wanted, tmp_path)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert whole.test == resumed.test
    trained = load_trained(tmp_path / "whole")
    found = predict(trained.model, trained.formulation, load_task(toy_task)[1].test)
    lines = (tmp_path / "whole" / "predictions.jsonl").read_text().splitlines()
    written = [json.loads(line)["prediction"] for line in lines]
    assert [trained.task.labels[p.label] for p in found] == written


def test_a_run_of_a_version_that_read_the_first_token_goes_on_so(
    toy_task, sentences, saved_models, tmp_path, monkeypatch
):
    """What was begun before there was a choice says nothing of it."""
    wanted = spec(toy_task, sentences, pooling="own")
    (_, resumed), _ = killed_and_resumed(monkeypatch, wanted, tmp_path)
    place = tmp_path / "killed" / "spec.yaml"
    said = yaml.safe_load(place.read_text())
    del said["pooled"], said["method"]["pooling"]
    place.write_text(yaml.safe_dump(said))
    (tmp_path / "killed" / "result.json").unlink()
    again = run(spec(toy_task, sentences), tmp_path / "killed", resume=True)
    assert read_by(tmp_path / "killed") == "own"
    assert again.test == resumed.test


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_what_has_no_such_head_is_refused(toy_task, saved_models, tmp_path, kind):
    with pytest.raises(ConfigError, match="pooling='mean' is for"):
        run(spec(toy_task, saved_models[kind], pooling="mean"), tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"recipe": "paper"}, True),
        ({}, False),
        ({"pooling": "own"}, False),  # who says so knows
        ({"method": "lora"}, False),
        ({"method": "prompt-tuning"}, False),
    ],
)
def test_the_doctor_sees_a_head_that_reads_the_wrong_state(
    toy_task, sentences, tmp_path, options, expected
):
    run(spec(toy_task, sentences, max_steps=2, **options), tmp_path / "run")
    assert signs_of(tmp_path / "run").is_misread is expected


def test_of_a_run_that_does_not_say_it_the_head_reads_the_first_token(
    toy_task, sentences, tmp_path
):
    wanted = spec(toy_task, sentences)
    wanted.save(tmp_path / "spec.yaml")
    assert RunSpec.load(tmp_path / "spec.yaml").pooled is None
    assert RunSpec.begun(tmp_path / "spec.yaml").pooled == "own"
