"""One run, from a specification to a saved and tested adapter."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

import tiny
from peft_smop.errors import ConfigError, RunError
from peft_smop.lab import RunSpec, load_trained, part_of_task, run
from peft_smop.results import RunDirectory

AUTO = {
    "t5": AutoModelForSeq2SeqLM,
    "llama": AutoModelForCausalLM,
    "bert": AutoModelForSequenceClassification,
}


def spec(toy_task, model, *, method="smop", seed=0, **training) -> RunSpec:
    training = {"max_steps": 6, "eval_steps": 3, "batch_size": 8, "learning_rate": 0.1, **training}
    return RunSpec.of(
        {
            "task": str(toy_task),
            "model": model,
            "method": {"name": method},
            "seed": seed,
            "training": training,
        }
    )


@pytest.mark.parametrize("method", ["smop", "single", "prompt-tuning"])
@pytest.mark.parametrize("kind", tiny.THREE)
def test_every_method_on_every_kind_of_model_ends_with_an_adapter_and_a_result(
    toy_task, saved_models, tmp_path, kind, method
):
    result = run(spec(toy_task, saved_models[kind], method=method), tmp_path / "run")
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {
        "adapter",
        "checkpoints",
        "metrics.jsonl",
        "predictions.jsonl",
        "result.json",
        "spec.yaml",
        "split.json",
        "task.json",
    }
    assert RunDirectory(tmp_path / "run").read_result() == result
    assert result.training.steps == 6
    assert result.test.examples == 6
    assert result.test.points_per_example == pytest.approx(100 / 6)
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 6
    row = json.loads(lines[0])
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert ("prompt" in row) == (method != "prompt-tuning")


@pytest.mark.parametrize("kind", tiny.THREE)
def test_the_saved_adapter_predicts_what_the_run_predicted(toy_task, saved_models, tmp_path, kind):
    run(spec(toy_task, saved_models[kind]), tmp_path / "run")
    from peft_smop.scoring import predict
    from peft_smop.tasks import load_task

    trained = load_trained(tmp_path / "run")
    _, split = load_task(toy_task)
    found = predict(trained.model, trained.formulation, split.test)
    written = [
        json.loads(line)
        for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    ]
    assert [trained.task.labels[p.label] for p in found] == [row["prediction"] for row in written]
    assert [p.prompt for p in found] == [row["prompt"] for row in written]
    # and PEFT's own loader takes it without us
    base = AUTO[kind].from_pretrained(
        saved_models[kind], **({"num_labels": 2} if kind == "bert" else {})
    )
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter")).eval()
    batch = tiny.batch(tiny.KINDS[kind])
    vocabulary = base.config.get_text_config().vocab_size
    batch |= {k: v % vocabulary for k, v in batch.items() if k in ("input_ids", "labels")}
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, trained.model(**batch).logits)


def test_the_same_seed_gives_the_same_weights_and_another_seed_gives_others(
    toy_task, saved_models, tmp_path
):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(spec(toy_task, saved_models["t5"], seed=seed), tmp_path / name)
        weights.append(load_file(tmp_path / name / "adapter" / "adapter_model.safetensors"))
    key = "base_model.model.smop.smop_adapters.prompts"
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not torch.equal(weights[0][key], weights[2][key])


def scored_by_step(monkeypatch, score):
    """Let the validation score be a function of the steps trained: tests decide what is best."""
    module = sys.modules["peft_smop.training.fit"]
    original = module.evaluate

    def evaluate(model, *args, **kwargs):
        found = original(model, *args, **kwargs)
        steps = int(model.smop_layer["default"].steps)
        return replace(found, score=replace(found.score, value=float(score(steps))))

    monkeypatch.setattr(module, "evaluate", evaluate)


def adapter_of(run_directory):
    return load_file(run_directory / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", tiny.THREE)
def test_a_killed_and_resumed_run_ends_with_the_weights_of_one_never_killed(
    toy_task, saved_models, tmp_path, kind, monkeypatch
):
    # six steps an epoch: checkpoints fall within epochs; the best state is the last one
    scored_by_step(monkeypatch, lambda step: step)
    wanted = spec(toy_task, saved_models[kind], max_steps=14, eval_steps=4)
    whole = run(wanted, tmp_path / "whole")
    assert whole.training.best_step > 10

    from peft_smop.training.trainer import ScoringTrainer

    original = ScoringTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 10:  # after the checkpoint of step 8, before that of step 12
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ScoringTrainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, tmp_path / "killed")
    monkeypatch.setattr(ScoringTrainer, "training_step", original)
    assert not (tmp_path / "killed" / "result.json").exists()
    resumed = run(wanted, tmp_path / "killed", resume=True)
    assert resumed.training.resumed
    one, other = adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "killed")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert whole.test == resumed.test


def test_a_run_killed_after_its_patience_ended_does_not_go_on_when_resumed(
    toy_task, saved_models, tmp_path, monkeypatch
):
    scored_by_step(monkeypatch, lambda step: {3: 90, 6: 50, 9: 40}.get(step, 95))
    wanted = spec(toy_task, saved_models["t5"], max_steps=18, patience=2)
    whole = run(wanted, tmp_path / "whole")
    assert (whole.training.steps, whole.training.best_step) == (9, 3)

    from peft_smop.training.trainer import ScoringTrainer

    original = ScoringTrainer._load_best_model

    def dies(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ScoringTrainer, "_load_best_model", dies)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, tmp_path / "killed")
    monkeypatch.setattr(ScoringTrainer, "_load_best_model", original)
    resumed = run(wanted, tmp_path / "killed", resume=True)
    assert (resumed.training.steps, resumed.training.best_step) == (9, 3)
    one, other = adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "killed")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_is_not_resumed_on_other_data(toy_task, saved_models, tmp_path, monkeypatch):
    from peft_smop.training.trainer import ScoringTrainer

    folder = tmp_path / "task"
    shutil.copytree(toy_task.parent, folder)
    wanted = spec(folder / "toy.yaml", saved_models["t5"])
    monkeypatch.setattr(ScoringTrainer, "_load_best_model", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(wanted, tmp_path / "run")
    monkeypatch.undo()
    rows = (folder / "rows.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text("\n".join(rows[:50]) + "\n")
    with pytest.raises(RunError, match="not those in"):
        run(wanted, tmp_path / "run", resume=True)


def test_there_is_always_a_whole_checkpoint_while_a_new_one_is_written(
    toy_task, saved_models, tmp_path, monkeypatch
):
    from peft_smop.training.checkpoints import CompleteCheckpoint, last_complete_checkpoint

    original = CompleteCheckpoint.on_save

    def dies(self, args, state, *more, **kwargs):
        if state.global_step == 6:
            raise KeyboardInterrupt
        return original(self, args, state, *more, **kwargs)

    scored_by_step(monkeypatch, lambda step: step)
    monkeypatch.setattr(CompleteCheckpoint, "on_save", dies)
    with pytest.raises(KeyboardInterrupt):
        run(spec(toy_task, saved_models["t5"], max_steps=9), tmp_path / "run")
    kept = last_complete_checkpoint(tmp_path / "run" / "checkpoints")
    assert kept is not None
    assert kept.name == "checkpoint-3"


def test_the_training_examples_of_something_trained_are_those_it_learned_from(
    toy_task, saved_models, tmp_path
):
    few = spec(toy_task, saved_models["t5"]).model_copy(update={"train_examples": 9})
    run(few, tmp_path / "run")
    own = part_of_task(load_trained(tmp_path / "run"), "test")
    assert (len(own.train), len(own.examples), own.is_own) == (9, 6, True)
    assert not part_of_task(load_trained(tmp_path / "run"), "test", seed=1).is_own


def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(toy_task, saved_models, tmp_path):
    wanted = spec(toy_task, saved_models["t5"])
    run(wanted, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    run(wanted, tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_checkpoint_that_was_not_finished_is_passed_over(toy_task, saved_models, tmp_path):
    wanted = spec(toy_task, saved_models["t5"], max_steps=6)
    whole = run(wanted, tmp_path / "whole")
    torn = tmp_path / "torn"
    (torn / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (torn / "checkpoints" / "checkpoint-3" / "trainer_state.json").write_text("{")
    shutil.copy(tmp_path / "whole" / "spec.yaml", torn / "spec.yaml")
    assert run(wanted, torn, resume=True).test == whole.test


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_that_failed_before_its_first_step_is_begun_anew_in_its_place(
    toy_task, saved_models, tmp_path, resume
):
    with pytest.raises(ConfigError, match="keep_texts"):
        run(spec(toy_task, saved_models["t5"], keep_texts=1.0), tmp_path / "run")
    wanted = spec(toy_task, saved_models["t5"], seed=3)
    assert run(wanted, tmp_path / "run", resume=resume).seed == 3
    assert not (tmp_path / "run" / "failure.json").exists()


def test_a_refused_resumption_is_not_why_a_run_stopped(toy_task, saved_models, tmp_path):
    killed = tmp_path / "run"
    with pytest.raises(ConfigError, match="keep_texts"):
        run(spec(toy_task, saved_models["t5"], keep_texts=1.0), killed)
    (killed / "failure.json").unlink()
    (killed / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="seed"):
        run(spec(toy_task, saved_models["t5"], keep_texts=1.0, seed=3), killed, resume=True)
    assert not (killed / "failure.json").exists()


def test_what_lies_beside_a_failed_run_is_not_begun_over(toy_task, saved_models, tmp_path):
    with pytest.raises(ConfigError, match="keep_texts"):
        run(spec(toy_task, saved_models["t5"], keep_texts=1.0), tmp_path / "run")
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="already holds an unfinished run"):
        run(spec(toy_task, saved_models["t5"]), tmp_path / "run")


def test_a_used_directory_is_refused_resumed_or_overwritten_as_told(
    toy_task, saved_models, tmp_path
):
    wanted = spec(toy_task, saved_models["t5"])
    first = run(wanted, tmp_path / "run")
    with pytest.raises(RunError, match="already holds a finished run"):
        run(wanted, tmp_path / "run")
    assert run(wanted, tmp_path / "run", resume=True) == first
    with pytest.raises(ConfigError, match="was started with seed=0, not 1"):
        run(spec(toy_task, saved_models["t5"], seed=1), tmp_path / "run", resume=True)
    assert run(wanted, tmp_path / "run", overwrite=True).test == first.test
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for how in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(RunError, match="holds no run"):
            run(wanted, tmp_path / "mine", **how)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    toy_task, saved_models, tmp_path, monkeypatch
):
    from peft_smop.training.trainer import ScoringTrainer

    original = ScoringTrainer.training_step

    def explodes(self, model, inputs, *args, **kwargs):
        if self.state.global_step == 4:
            with torch.no_grad():
                model.smop_layer["default"].prompts.mul_(float("inf"))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(ScoringTrainer, "training_step", explodes)
    with pytest.raises(
        RunError, match=r"stopped at step 5: .*checkpoint-3.*lower the learning rate"
    ):
        run(spec(toy_task, saved_models["t5"], max_steps=9), tmp_path / "run")
    kept = load_file(
        tmp_path / "run" / "checkpoints" / "checkpoint-3" / "adapter_model.safetensors"
    )
    assert all(torch.isfinite(tensor.float()).all() for tensor in kept.values())


@pytest.mark.data
@pytest.mark.parametrize("kind", tiny.THREE)
def test_commitmentbank_goes_through_every_kind_of_model(superglue, saved_models, tmp_path, kind):
    wanted = RunSpec.of(
        {
            "task": "cb",
            "data": superglue,
            "model": saved_models[kind],
            "training": {"max_steps": 2, "eval_steps": 1, "batch_size": 8, "max_length": 50},
        }
    )
    result = run(wanted, tmp_path / "run")
    assert result.test.examples == 56
    assert result.test.majority == pytest.approx(50.0)  # 28 of 56, contradiction
    assert result.truncated_test_inputs > 0
