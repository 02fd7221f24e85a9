"""What a sweep's command line says goes before its file, and what failed is told."""

import json

import pytest

from peft_smop.errors import CheckpointError, ConfigError
from peft_smop.lab.local import run_locally
from peft_smop.lab.sweep import jobs_of, load_sweep
from peft_smop.lab.working import State, Store
from peft_smop.results.files import append_line, read_lines


def lengths(jobs):
    return {(job.spec.training.epochs, job.spec.training.max_steps) for job in jobs}


def test_the_command_s_length_goes_before_each_task_s_own():
    assert {epochs for epochs, _ in lengths(load_sweep("paper/table2"))} == {20, 100}
    assert {e for e, _ in lengths(load_sweep("paper/table2", {"training": {"epochs": 1}}))} == {1}
    small = load_sweep("paper/table2", {"training": {"epochs": 1}}, small=True)
    assert lengths(small) == {(1, None)}
    steps = load_sweep("paper/table2", {"training": {"max_steps": 7}})
    assert {most for _, most in lengths(steps)} == {7}


def test_the_command_s_options_go_before_each_task_s_own(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(
        "tasks: [{task: medley, train_examples: 64, training: {learning_rate: 0.3}}]\n"
        "training: {learning_rate: 0.1, max_steps: 4}\n"
    )
    (job,) = load_sweep(str(file), {"train_examples": 7, "lr": 0.5})
    assert (job.spec.train_examples, job.spec.learning_rate) == (7, 0.5)


def test_a_task_s_name_is_a_name_whatever_stands_beside_the_file(tmp_path):
    (tmp_path / "boolq").mkdir()
    file = tmp_path / "sweep.yaml"
    file.write_text("task: boolq\ndata: ~/superglue\n")
    (job,) = load_sweep(str(file))
    assert job.spec.task == "boolq"
    assert "~" not in str(job.spec.data)
    assert str(tmp_path) not in str(job.spec.data)


@pytest.mark.parametrize("wrong", ["[1]", "5", "fast"])
def test_training_that_is_no_mapping_is_one_sentence(tmp_path, wrong):
    file = tmp_path / "sweep.yaml"
    file.write_text(f"task: medley\ntraining: {wrong}\n")
    with pytest.raises(ConfigError, match="expected options of training"):
        load_sweep(str(file))


def test_a_finished_run_that_was_altered_is_a_failure(toy_task, saved_models, tmp_path):
    jobs = jobs_of(
        {
            "task": str(toy_task),
            "model": saved_models["t5"],
            "methods": ["single"],
            "training": {"max_steps": 2, "eval_steps": 1, "batch_size": 8},
        }
    )
    store = Store(tmp_path)
    assert run_locally(jobs, store, workers=1) == {}
    result = store.run(jobs[0]).result
    content = json.loads(result.read_text())
    result.write_text(json.dumps({**content, "seed": 5}))
    (reason,) = run_locally(jobs, store, workers=1).values()
    assert "altered" in str(reason)
    assert store.state(jobs[0], {jobs[0].directory}) is State.failed


def test_a_torn_line_spoils_no_other(tmp_path):
    path = tmp_path / "journal.jsonl"
    append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"event": "sta')
    append_line(path, {"b": "x\u2028y"})
    assert read_lines(path, "a journal", whole=False) == [{"a": 1}, {"b": "x\u2028y"}]
    with pytest.raises(CheckpointError, match="line 2"):
        read_lines(path, "a journal")
