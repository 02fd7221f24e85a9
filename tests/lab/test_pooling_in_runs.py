"""What a head reads in whole runs: what its model says, what was asked for, or the first token."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub.errors import EntryNotFoundError
from killed import killed_and_resumed
from transformers import ModernBertConfig, ModernBertForSequenceClassification

from peft_smop.errors import CheckpointError, ConfigError
from peft_smop.lab import RunSpec, load_trained, run, signs_of
from peft_smop.lab.run import _beside_the_first
from peft_smop.methods import declared_pooling
from peft_smop.methods.sources import POOLING
from peft_smop.results import RunDirectory
from peft_smop.scoring import predict
from peft_smop.tasks import load_task
from tiny import COMMON

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
        ({"pooling_mode_cls_token": True}, "own"),  # joined with the mean, which is not denied
        ({"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode": "cls"}, "own"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "own"),
        ({"pooling_mode": ["cls", "mean"]}, "own"),
        ({"word_embedding_dimension": 32}, "mean"),  # what sentence-transformers takes it for
        (None, "own"),
    ],
)
def test_what_a_model_says_of_its_pooling(saved_models, tmp_path, said, expected):
    folder = Path(shutil.copytree(saved_models["bert"], tmp_path / "bert"))
    if said is not None:
        (folder / POOLING).parent.mkdir()
        (folder / POOLING).write_text(json.dumps(said))
    assert declared_pooling(str(folder)) == expected


DAMAGED = (
    "no JSON",
    "[1]",
    '{"pooling_mode_mean_tok',
    b"\xff\xfe",
    "[" * 100_000,
    '{"pooling_mode": 7}',
    '{"pooling_mode": []}',
    '{"pooling_mode": "average"}',
    '{"pooling_mode_mean_tokens": "false"}',
    '{"pooling_mode_mean_tokens": false}',
)


@pytest.mark.parametrize("damaged", DAMAGED, ids=range(len(DAMAGED)))
def test_damage_is_no_silence(saved_models, toy_task, tmp_path, damaged):
    folder = Path(shutil.copytree(saved_models["bert"], tmp_path / "bert"))
    (folder / POOLING).parent.mkdir()
    damaged = damaged.encode() if isinstance(damaged, str) else damaged
    (folder / POOLING).write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"1_Pooling/config.json.*--pooling mean, or own"):
        run(spec(toy_task, str(folder)), tmp_path / "run")
    # who says it needs no file
    assert run(spec(toy_task, str(folder), pooling="own", max_steps=2), tmp_path / "run")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub's cache that knows one commit of one model, with no way to the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40) / POOLING).parent.mkdir(parents=True)
    return folder


def test_a_link_to_nothing_is_damage(saved_models, tmp_path):
    folder = Path(shutil.copytree(saved_models["bert"], tmp_path / "bert"))
    (folder / POOLING).parent.mkdir()
    (folder / POOLING).symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"1_Pooling/config.json cannot be read"):
        declared_pooling(str(folder))


@pytest.mark.parametrize("error", [OSError, ValueError, RuntimeError, TimeoutError, Exception])
def test_whatever_keeps_the_hub_away_is_one_sentence(cache, monkeypatch, error):
    def asked(*_):
        raise error("no way")

    monkeypatch.setattr("peft_smop.methods.sources.hf_hub_download", asked)
    with pytest.raises(CheckpointError, match="cannot be had: no way"):
        declared_pooling("some/model")


def test_the_doctor_says_the_rest_where_that_is_not_known(toy_task, saved_models, tmp_path):
    folder = Path(shutil.copytree(saved_models["bert"], tmp_path / "bert"))
    run(spec(toy_task, str(folder), max_steps=2, recipe="paper"), tmp_path / "run")
    (folder / POOLING).parent.mkdir()
    (folder / POOLING).write_text("damaged")
    assert not signs_of(tmp_path / "run").is_misread


def test_a_model_of_the_hub_is_known_without_it_where_it_was_asked_before(cache):
    place = cache / "snapshots" / ("0" * 40) / POOLING
    place.write_text(json.dumps(MEAN))
    assert declared_pooling("some/model") == "mean"
    place.unlink()
    missing = cache / ".no_exist" / ("0" * 40) / POOLING
    missing.parent.mkdir(parents=True)
    missing.touch()
    assert declared_pooling("some/model") == "own"


def test_what_cannot_be_known_is_not_taken_for_a_no(cache):
    with pytest.raises(
        CheckpointError, match=r"some/model is meant .* is not known, as its 1_Pool"
    ):
        declared_pooling("some/model")


def test_a_repository_without_the_file_says_no(cache, monkeypatch):
    def asked(*_):
        raise EntryNotFoundError("404")

    monkeypatch.setattr("peft_smop.methods.sources.hf_hub_download", asked)
    assert declared_pooling("some/model") == "own"


def test_a_head_that_reads_the_mean_already_is_left_to_it(toy_task, saved_models, tmp_path):
    """The recipe takes what the model says; what was asked for is refused instead."""
    config = ModernBertConfig(**COMMON, pad_token_id=0, classifier_pooling="mean")
    folder = tmp_path / "modern"
    shutil.copytree(saved_models["bert"], folder, ignore=lambda *_: ["config.json"])
    ModernBertForSequenceClassification(config).save_pretrained(folder)
    (folder / POOLING).parent.mkdir()
    (folder / POOLING).write_text(json.dumps(MEAN))
    result = run(spec(toy_task, str(folder), max_steps=2), tmp_path / "run")
    assert result.method["pooling"] is None
    assert not signs_of(tmp_path / "run").is_misread
    (folder / POOLING).write_text("damaged")  # and does not matter
    assert run(spec(toy_task, str(folder), max_steps=2), tmp_path / "again")
    with pytest.raises(ConfigError, match="reads others"):
        run(spec(toy_task, str(folder), pooling="mean"), tmp_path / "asked")


def test_a_method_without_the_choice_believes_nobody(toy_task, sentences, tmp_path):
    wanted = spec(toy_task, sentences, "lora", max_steps=2).model_copy(update={"pooled": "mean"})
    assert run(wanted, tmp_path / "run").method["pooling"] is None
    assert RunSpec.load(tmp_path / "run" / "spec.yaml").pooled == "own"


def test_a_second_process_takes_what_the_first_wrote_down(
    toy_task, sentences, tmp_path, monkeypatch
):
    """A run of an earlier version is taken up as it began, by every process."""
    wanted, begun = spec(toy_task, sentences), []
    run(wanted, tmp_path / "run")
    wrote = RunSpec.load(tmp_path / "run" / "spec.yaml")
    kept = wrote.model_copy(update={"pooled": "own", "continued_at": (3,)})
    kept.save(tmp_path / "run" / "spec.yaml")
    module = importlib.import_module("peft_smop.lab.run")
    monkeypatch.setattr(module, "fit", begun.append)
    monkeypatch.setattr(RunDirectory, "read_result", lambda _: None)
    _beside_the_first(wanted, RunDirectory(tmp_path / "run"), resume=True)
    (training,) = begun
    assert training.model.peft_config["default"].pooling == "own"
    assert training.options == kept.training


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
        ({"pooling": "mean", "recipe": "paper"}, False),
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
