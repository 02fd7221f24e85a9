"""A run goes on from what is whole, ends as it would have, and never takes the last for best."""

import json
import shutil

import pytest
import torch
from killed import killed_after
from safetensors.torch import load_file

from peft_smop.errors import CheckpointError, ConfigError, RunError
from peft_smop.lab import RunSpec, run
from peft_smop.results import RunDirectory
from peft_smop.training.checkpoints import complete_checkpoints, is_whole
from peft_smop.training.trainer import ScoringTrainer


def spec(small_medley, **training):
    quick = {"max_steps": 9, "eval_steps": 2, "batch_size": 8, "learning_rate": 0.3}
    return RunSpec.of(
        {"task": str(small_medley), "model": "embedded", "training": {**quick, **training}}
    )


@pytest.fixture(scope="module")
def whole(small_medley, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(spec(small_medley), folder)


@pytest.fixture
def killed(small_medley, tmp_path, monkeypatch):
    """A run that was killed in its eighth step, after the checkpoint of the sixth."""
    with monkeypatch.context() as patched:
        killed_after(patched, 7)
        with pytest.raises(KeyboardInterrupt):
            run(spec(small_medley), tmp_path / "run")
    return tmp_path / "run"


def same(one, other):
    """Weights, predictions and metrics."""
    weights = [load_file(next((r / "adapter").glob("*.safetensors"))) for r in (one, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    for name in ("metrics.jsonl", "predictions.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def newest(run_directory):
    steps = complete_checkpoints(run_directory / "checkpoints")
    return steps[max(steps)]


def test_metrics_grow_while_the_run_runs_and_a_resumed_one_writes_the_same(
    small_medley, whole, killed
):
    lines = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_score" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert run(spec(small_medley), killed, resume=True).test == whole[1].test
    same(killed, whole[0])


def test_the_last_state_is_looked_at_too(whole):
    lines = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_score" in line] == [2, 4, 6, 8, 9]


FILES = ("optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth", "manifest.json")


@pytest.mark.parametrize("name", [*FILES, "adapter_model.safetensors"])
@pytest.mark.parametrize("how", ["missing", "cut", "altered"])
def test_a_checkpoint_without_any_of_its_files_is_passed_over(
    small_medley, whole, killed, name, how
):
    path = newest(killed) / name
    if how == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        path.write_bytes(content[: len(content) // 2] if how == "cut" else b"\0" + content[1:])
    if (name, how) != ("optimizer.pt", "missing"):  # one of them to its end, as it takes its time
        assert not is_whole(path.parent)
        return
    assert run(spec(small_medley), killed, resume=True).test == whole[1].test
    same(killed, whole[0])


def test_a_manifest_that_lists_too_little_makes_no_checkpoint_whole(killed):
    path = newest(killed) / "manifest.json"
    content = json.loads(path.read_text())
    content["files"].pop("optimizer.pt")
    path.write_text(json.dumps(content))
    assert not is_whole(path.parent)
    for text in ("[]", '{"files": 3}', '{"files": {"optimizer.pt": 1}}'):
        path.write_text(text)
        assert not is_whole(path.parent)


def test_a_checkpoint_whose_best_state_is_gone_is_not_gone_on_from(
    small_medley, whole, killed, monkeypatch
):
    state = json.loads((newest(killed) / "trainer_state.json").read_text())
    best = killed / "checkpoints" / f"checkpoint-{state['best_global_step']}"
    shutil.rmtree(best)
    assert newest_or_none(killed) != killed / "checkpoints" / "checkpoint-6"
    assert run(spec(small_medley), killed, resume=True).test == whole[1].test
    same(killed, whole[0])


def newest_or_none(run_directory):
    steps = complete_checkpoints(run_directory / "checkpoints")
    return steps[max(steps)] if steps else None


@pytest.mark.parametrize("when", ["before the end", "in between"])
def test_the_last_state_is_never_reported_where_the_best_one_was_taken_away(
    small_medley, tmp_path, monkeypatch, when
):
    original = ScoringTrainer.training_step
    at = {"before the end": 8, "in between": 5}[when]

    def steals(self, *args, **kwargs):
        if self.state.global_step == at:
            for folder in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"):
                shutil.rmtree(folder)
        return original(self, *args, **kwargs)

    def falling(self, *args, **kwargs):
        found = evaluate(self, *args, **kwargs)
        self.state.best_metric, self.state.best_global_step = 100.0, 2
        return found

    evaluate = ScoringTrainer.evaluate
    with monkeypatch.context() as patched:
        patched.setattr(ScoringTrainer, "training_step", steals)
        patched.setattr(ScoringTrainer, "evaluate", falling)
        with pytest.raises(
            RunError, match=r"the best state, .*checkpoint-2, is missing or damaged"
        ):
            run(spec(small_medley), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_run_that_was_moved_goes_on_from_its_new_place(small_medley, whole, killed, tmp_path):
    killed.rename(tmp_path / "moved")
    assert run(spec(small_medley), tmp_path / "moved", resume=True).test == whole[1].test
    same(tmp_path / "moved", whole[0])


def test_a_finished_run_is_trained_on_where_more_steps_are_asked_for(small_medley, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    longer = spec(small_medley, max_steps=14)
    result = run(longer, tmp_path / "run", resume=True)
    assert result.training.steps == 14
    assert result.training.continued_at == (9,)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    before = (whole[0] / "metrics.jsonl").read_text().splitlines()
    assert lines[: len(before)] == before
    assert json.loads(lines[-1])["step"] == 14
    assert run(longer, tmp_path / "run", resume=True) == result
    assert RunDirectory(tmp_path / "run").read_result() == result
    with pytest.raises(ConfigError, match="was started with max_steps=14, not 9"):
        run(spec(small_medley), tmp_path / "run", resume=True)


def test_training_on_that_is_killed_goes_on(small_medley, whole, tmp_path, monkeypatch):
    for name in ("one", "other"):
        shutil.copytree(whole[0], tmp_path / name)
    longer = spec(small_medley, max_steps=14)
    run(longer, tmp_path / "one", resume=True)
    with monkeypatch.context() as patched:
        killed_after(patched, 12)
        with pytest.raises(KeyboardInterrupt):
            run(longer, tmp_path / "other", resume=True)
    assert run(longer, tmp_path / "other", resume=True).training.continued_at == (9,)
    same(tmp_path / "one", tmp_path / "other")


def test_what_cannot_be_trained_on_says_why(small_medley, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        run(spec(small_medley, max_steps=14), tmp_path / "run", resume=True)
    assert RunDirectory(tmp_path / "run").read_result() == whole[1]
    for also in ({}, {"max_steps": 14}):  # which alone would do
        with pytest.raises(ConfigError, match="was started with batch_size=8, not 4"):
            run(spec(small_medley, batch_size=4, **also), tmp_path / "run", resume=True)
