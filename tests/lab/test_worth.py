"""What a run says of its routing: the certificate on validation examples, bounded."""

import json
import sys

import pytest
import torch

from peft_smop.lab import RunSpec, load_trained, part_of_task, run, signs_of
from peft_smop.lab.worth import examples_to_certify
from peft_smop.scoring import certify, under_prompts
from peft_smop.tasks import Example


@pytest.fixture
def few_are_enough(monkeypatch):
    """The toy task has six validation rows, by which nothing would be taken away."""
    monkeypatch.setattr(under_prompts, "LEAST_EXAMPLES", 0)


def spec(toy_task, model, **method) -> RunSpec:
    return RunSpec.of(
        {
            "task": str(toy_task),
            "model": model,
            "method": {"name": "smop", **method},
            "training": {"max_steps": 4, "eval_steps": 2, "batch_size": 8, "learning_rate": 0.1},
        }
    )


def test_a_run_says_what_its_validation_examples_say(toy_task, saved_models, tmp_path):
    wanted = spec(toy_task, saved_models["t5"], num_prompts=3)
    result = run(wanted, tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    found = certify(
        trained.model, trained.formulation, part_of_task(trained, "validation").examples
    )
    routing = json.loads((tmp_path / "run" / "result.json").read_text())["routing"]
    assert routing == result.routing.model_dump(mode="json")
    assert routing["verdict"] == found.verdict
    assert routing["worth"]["value"] == pytest.approx(found.worth.value)
    assert routing["regret"]["high"] == pytest.approx(found.regret.high)
    assert (routing["part"], routing["examples"], routing["of"]) == ("validation", 6, 6)


def test_a_run_stopped_while_it_is_certified_ends_as_one_never_stopped(
    toy_task, saved_models, tmp_path, monkeypatch
):
    wanted = spec(toy_task, saved_models["t5"])
    whole = run(wanted, tmp_path / "whole")
    with monkeypatch.context() as patched:
        module = sys.modules["peft_smop.lab.ending"]
        patched.setattr(module, "routing_worth", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(wanted, tmp_path / "killed")
    assert not (tmp_path / "killed" / "result.json").exists()
    resumed = run(wanted, tmp_path / "killed", resume=True)
    assert resumed.routing == whole.routing


@pytest.mark.parametrize(
    "method",
    [
        {"routing": "single"},
        {"routing": "hashed"},
        {"routing": "stochastic"},
        {"num_prompts": 1},
        {"name": "lora"},
    ],
)
def test_what_routes_nothing_has_no_worth(toy_task, saved_models, tmp_path, method):
    wanted = spec(toy_task, saved_models["bert"], **method)
    assert run(wanted, tmp_path / "run").routing is None


@pytest.mark.parametrize("routing", ["posterior", "gumbel", "fixed", "released"])
def test_every_router_has_one(toy_task, saved_models, tmp_path, routing):
    wanted = spec(toy_task, saved_models["t5"], routing=routing, num_prompts=2)
    result = run(wanted, tmp_path / "run")
    assert "best single prompt here" in result.routing.verdict


def test_examples_are_bounded_by_number_and_by_answers():
    examples = [Example(str(i), "text", 0) for i in range(3000)]
    few = examples[:1000]
    assert examples_to_certify(few, num_prompts=4, seed=0) is few
    drawn = examples_to_certify(examples, num_prompts=4, seed=1)
    assert len(drawn) == 1000
    assert drawn == sorted(drawn, key=lambda example: int(example.id))
    assert drawn == examples_to_certify(examples, num_prompts=4, seed=1)
    assert drawn != examples_to_certify(examples, num_prompts=4, seed=2)
    assert len(examples_to_certify(examples, num_prompts=64, seed=0)) == 307  # 20,000 / 65
    assert len(examples_to_certify(examples, num_prompts=100_000, seed=0)) == 1


def test_a_run_takes_prompts_away_that_validation_is_no_worse_without(
    toy_task, saved_models, tmp_path, few_are_enough
):
    options = {"routing": "posterior", "num_prompts": 6}
    wanted = spec(toy_task, saved_models["t5"], **options)
    result = run(wanted, tmp_path / "run")
    gone = result.routing.pruned
    assert 0 < len(gone) <= 4
    trained = load_trained(tmp_path / "run")
    assert len(trained.model.smop_layer["default"].prompts) == 6 - len(gone)
    assert len(result.test.load) == 6 - len(gone)
    told = wanted.training.model_copy(update={"prune_prompts": False})
    whole = run(wanted.model_copy(update={"training": told}), tmp_path / "whole")
    assert whole.routing.pruned == ()
    assert result.parameters == whole.parameters  # those that were trained
    kept = [j for j in range(6) if j not in gone]
    every = load_trained(tmp_path / "whole").model.smop_layer["default"].prompts
    assert torch.equal(trained.model.smop_layer["default"].prompts, every[kept])
    ours, theirs = (one.cost.training_gflops_per_example for one in (result, whole))
    assert ours == pytest.approx(theirs, rel=1e-3)  # but for the router's own few
    assert signs_of(tmp_path / "run").scale is not None


def test_the_router_is_fitted_once_more_unless_it_is_told_not_to(toy_task, saved_models, tmp_path):
    wanted = spec(toy_task, saved_models["t5"], routing="posterior", num_prompts=3)
    result = run(wanted, tmp_path / "run")
    told = wanted.training.model_copy(update={"refit_router": False})
    plain = run(wanted.model_copy(update={"training": told}), tmp_path / "plain")
    ours, theirs = (
        load_trained(tmp_path / name).model.smop_layer["default"] for name in ("run", "plain")
    )
    assert torch.equal(ours.prompts, theirs.prompts)
    assert result.routing.refitted != torch.equal(ours.router, theirs.router)
    assert not plain.routing.refitted


def test_seeds_with_other_numbers_of_prompts_stand_in_one_table(
    toy_task, saved_models, tmp_path, few_are_enough, smop
):
    results = []
    for seed in (0, 1, 2):
        wanted = spec(toy_task, saved_models["t5"], routing="posterior", num_prompts=6)
        training = wanted.training.model_copy(update={"dropout": True})  # seeds differ by it
        now = wanted.model_copy(update={"seed": seed, "training": training})
        results.append(run(now, tmp_path / str(seed)))
    assert len({len(one.test.load) for one in results}) > 1
    code, _, err = smop("report", *(tmp_path / str(seed) for seed in (0, 1, 2)))
    assert code == 0, err


def test_what_a_router_learned_without_judging_keeps_its_prompts(toy_task, saved_models, tmp_path):
    result = run(spec(toy_task, saved_models["t5"], num_prompts=6), tmp_path / "run")
    assert result.routing.pruned == ()


def test_a_run_stopped_after_prompts_were_taken_away_ends_as_one_never_stopped(
    toy_task, saved_models, tmp_path, monkeypatch, few_are_enough
):
    wanted = spec(toy_task, saved_models["t5"], routing="posterior", num_prompts=6)
    whole = run(wanted, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["peft_smop.lab.ending"], "_save", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(wanted, tmp_path / "killed")
    resumed = run(wanted, tmp_path / "killed", resume=True)
    assert resumed.routing == whole.routing
    assert resumed.test == whole.test
    for part in ("metrics.jsonl", "predictions.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "killed" / part).read_bytes() == (tmp_path / "whole" / part).read_bytes()
