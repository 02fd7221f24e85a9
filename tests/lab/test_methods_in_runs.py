"""Every method through a whole run on the packaged model, and through an interruption."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from killed import killed_and_resumed

from peft_smop.errors import ConfigError, RunError
from peft_smop.lab import RunSpec, load_trained, run, variants
from peft_smop.scoring import predict
from peft_smop.tasks import load_task
from peft_smop.training.callbacks import Revival, StepMeter
from peft_smop.training.trainer import ScoringTrainer


def spec(task, name, **training):
    one = variants()[name]
    quick = {"max_steps": 6, "eval_steps": 3, "batch_size": 8}
    return RunSpec.of(
        {
            "task": str(task),
            "model": "embedded",
            "method": one.method,
            "training": {**quick, **one.training, **training},
        }
    )


@pytest.mark.parametrize("name", [name for name in variants() if name != "told"])
def test_every_variant_trains_tests_saves_and_loads_on_the_packaged_model(
    small_medley, tmp_path, name
):
    result = run(spec(small_medley, name), tmp_path / "run")
    assert result.training.steps == 6
    assert result.cost.training_gflops_per_example > 0
    trained = load_trained(tmp_path / "run")
    _, split = load_task(small_medley)
    found = predict(trained.model, trained.formulation, split.test)
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert [trained.task.labels[p.label] for p in found] == [
        json.loads(line)["prediction"] for line in lines
    ]


def test_rows_are_told_the_prompt_of_their_population(tmp_path):
    """Nine sub-populations, nine prompts: rows of one are trained and tested under the same one."""
    result = run(spec("medley", "told"), tmp_path / "run")
    assert result.parameters.trainable == 9 * 5 * 128
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    names = sorted({row["population"] for row in rows})
    assert [row["prompt"] for row in rows] == [names.index(row["population"]) for row in rows]
    for path in (tmp_path / "run", tmp_path / "run" / "adapter"):
        with pytest.raises(ConfigError, match="'told' is a control, scored where it is trained"):
            load_trained(path)


def test_nothing_can_be_told_where_no_population_is_named(small_medley, tmp_path):
    with pytest.raises(ConfigError, match="names no sub-populations, of which method 'told'"):
        run(spec(small_medley, "told"), tmp_path / "run")


RESUMED = ["p-tuning-5", "prefix-tuning-20", "lora-1", "houlsby-8", "ia3", "full", "smop-residual"]
RESUMED += ["smop-low-rank", "smop-stochastic", "smop-annealed", "smop-revival", "smop-two-rates"]


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_and_resumed_run_of_any_method_ends_as_one_never_killed(
    small_medley, tmp_path, monkeypatch, name
):
    wanted = spec(small_medley, name, max_steps=9)
    (whole, resumed), (one, other) = killed_and_resumed(monkeypatch, wanted, tmp_path)
    assert resumed.training.resumed
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert whole.test == resumed.test


def test_parts_of_an_adapter_have_learning_rates_of_their_own(small_medley, tmp_path, monkeypatch):
    seen = {}
    original = ScoringTrainer.create_optimizer

    def remembered(self, *args, **kwargs):
        optimizer = original(self, *args, **kwargs)
        names = {id(p): n for n, p in self.model.named_parameters()}
        for group in optimizer.param_groups:
            for p in group["params"]:
                seen[names[id(p)].split("smop_adapters.")[1]] = group["lr"]
        return optimizer

    monkeypatch.setattr(ScoringTrainer, "create_optimizer", remembered)
    wanted = spec(small_medley, "smop-residual", router_learning_rate=0.02, warmup_ratio=0.0)
    run(wanted, tmp_path / "run")
    assert seen["default.prompts"] == 2.0
    assert seen["default.router"] == 0.02
    networks = {rate for name, rate in seen.items() if ".network." in name}
    assert networks == {0.001}


def test_a_dead_prompt_is_revived_before_the_step_after_the_evaluation_that_found_it(
    small_medley, tmp_path, monkeypatch
):
    revived = []
    original = Revival.on_step_begin

    def watched(self, args, state, control, **kwargs):
        before = self.revived
        original(self, args, state, control, **kwargs)
        if self.revived > before:
            revived.append(state.global_step)

    monkeypatch.setattr(Revival, "on_step_begin", watched)
    fit = sys.modules["peft_smop.training.fit"]
    evaluate = fit.evaluate
    monkeypatch.setattr(
        fit, "evaluate", lambda *a, **k: replace(evaluate(*a, **k), load=(0.9, 0.1, 0.0, 0.0))
    )
    run(spec(small_medley, "smop-revival", max_steps=7), tmp_path / "run")
    assert revived == [3, 6]


def test_revival_is_refused_where_there_is_no_router(small_medley, tmp_path):
    for name in ("single", "smop-uniform", "smop-hashed", "lora-8"):
        with pytest.raises(
            ConfigError, match="revive_dead_prompts=True needs a method with a router"
        ):
            run(spec(small_medley, name, revive_dead_prompts=True), tmp_path / name)


def test_the_released_routing_says_that_rows_are_not_independent(small_medley, tmp_path):
    result = run(spec(small_medley, "smop-released"), tmp_path / "run")
    assert any("depend on the other rows" in alarm for alarm in result.test.alarms)
    plain = run(spec(small_medley, "smop"), tmp_path / "plain")
    assert not any("depend on" in alarm for alarm in plain.test.alarms)


def test_the_clock_leaves_evaluations_and_the_first_steps_out(monkeypatch):
    from types import SimpleNamespace

    now = iter([0.0, 10.0, 12.0, 14.0, 17.0, 100.0, 103.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    meter, step = StepMeter(), SimpleNamespace(should_evaluate=False, should_save=False)
    ends = SimpleNamespace(should_evaluate=True, should_save=False)
    for control in (step, step, step, step, ends, step, step):
        meter.on_step_end(None, None, control)
    # 10, 2 and 2 are warm-up; 83 holds an evaluation
    assert meter.seconds == [10.0, 2.0, 2.0, 3.0, 3.0]
    assert meter.seconds_per_step == 3.0
    assert StepMeter().seconds_per_step is None


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("lora-2", "router_learning_rate"),
        ("single", "router_learning_rate"),
        ("smop-uniform", "router_learning_rate"),
        ("smop", "network_learning_rate"),
        ("full", "network_learning_rate"),
    ],
)
def test_a_learning_rate_for_what_is_not_there_is_refused(small_medley, tmp_path, name, option):
    with pytest.raises(ConfigError, match=f"{option}=0.1 has nothing to train"):
        run(spec(small_medley, name, **{option: 0.1}), tmp_path / "run")


def test_a_run_interrupted_in_its_test_is_resumed_without_another_step(
    small_medley, tmp_path, monkeypatch
):
    module = sys.modules["peft_smop.lab.ending"]
    wanted = spec(small_medley, "smop", eval_steps=1)
    whole = run(wanted, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(module, "score_once", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(wanted, tmp_path / "killed")
    resumed = run(wanted, tmp_path / "killed", resume=True)
    assert resumed.training.steps == whole.training.steps == 6
    assert resumed.test == whole.test
    # no step was measured, and nothing is made up for it
    assert resumed.cost.peak_memory_mib is None
    assert resumed.cost.seconds_per_100_steps is None


def test_a_cost_that_does_not_fit_into_memory_costs_a_figure_and_not_the_run(
    small_medley, tmp_path, monkeypatch
):
    def too_large(*args, **kwargs):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(sys.modules["peft_smop.lab.ending"], "training_operations", too_large)
    result = run(spec(small_medley, "smop"), tmp_path / "run")
    assert result.cost.training_gflops_per_example is None


def test_a_finished_run_s_result_is_not_given_for_other_data(small_medley, tmp_path):
    folder = tmp_path / "task"
    folder.mkdir()
    for name in ("small.yaml", "rows.jsonl"):
        (folder / name).write_text((small_medley.parent / name).read_text())
    wanted = spec(folder / "small.yaml", "single")
    first = run(wanted, tmp_path / "run")
    assert run(wanted, tmp_path / "run", resume=True) == first
    rows = (folder / "rows.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").write_text("\n".join(rows[:90]) + "\n")
    with pytest.raises(RunError, match="not those in"):
        run(wanted, tmp_path / "run", resume=True)
