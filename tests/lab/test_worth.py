"""What a run says of its routing: the certificate on validation examples, bounded."""

import json
import sys

import pytest

from peft_smop.lab import RunSpec, load_trained, part_of_task, run
from peft_smop.lab.worth import examples_to_certify
from peft_smop.scoring import certify
from peft_smop.tasks import Example


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
    assert routing == result.routing.model_dump()
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
