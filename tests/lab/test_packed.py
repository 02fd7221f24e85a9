"""Several runs in one pass end as each would alone, leave when they are done, and can be killed."""

import json
from functools import partial

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError, DivergedError, SMoPError
from peft_smop.lab import RunSpec, run, run_packed, study, variant
from peft_smop.lab.local import run_locally
from peft_smop.methods import load_backbone
from peft_smop.training import share_backbone
from peft_smop.training.checkpoints import CompleteCheckpoint
from peft_smop.training.trainer import ScoringTrainer


@pytest.fixture(scope="module")
def specs(small_medley):
    """Runs that differ in everything that may: seed, rate, shape, routing, optimizer, loss."""
    quick = {"max_steps": 24, "eval_steps": 6, "batch_size": 8}
    chosen = [
        ({"name": "smop"}, {"learning_rate": 0.3}, 0),
        ({"name": "smop", "num_prompts": 3, "num_virtual_tokens": 2}, {}, 1),
        ({"name": "smop", "routing": "gumbel"}, {"schedule": "cosine"}, 2),
        ({"name": "single"}, {"optimizer": "adamw_torch", "learning_rate": 0.01}, 3),
        ({"name": "smop", "routing": "stochastic"}, {"batch_size": 5}, 4),
    ]
    return [
        RunSpec.of(
            {
                "task": str(small_medley),
                "model": "embedded",
                "method": method,
                "training": {**quick, **training},
                "seed": seed,
            }
        )
        for method, training, seed in chosen
    ]


def adapter(folder):
    return load_file(next((folder / "adapter").glob("*.safetensors")))


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def calm(spec):
    """The same run at a rate at which rounding does not grow from step to step."""
    options = {"learning_rate": 1e-3, "optimizer": "adamw_torch"}
    return spec.model_copy(update={"training": spec.training.model_copy(update=options)})


def test_packed_runs_have_the_losses_weights_and_results_of_separate_ones(specs, tmp_path):
    chosen = [calm(spec) for spec in specs]
    alone = [run(spec, tmp_path / f"alone{i}") for i, spec in enumerate(chosen)]
    packed = run_packed(chosen, [tmp_path / f"packed{i}" for i in range(len(chosen))])
    for i, (one, other) in enumerate(zip(alone, packed, strict=True)):
        assert other.training.packed == 5
        assert other.training.steps == one.training.steps == 24
        expected, found = losses(tmp_path / f"alone{i}"), losses(tmp_path / f"packed{i}")
        assert found.keys() == expected.keys()
        assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-5)
        assert other.test.loss == pytest.approx(one.test.loss, rel=1e-5)
        weights = adapter(tmp_path / f"packed{i}")
        for name, tensor in adapter(tmp_path / f"alone{i}").items():
            assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


def test_every_step_of_a_whole_packed_training_has_the_loss_and_gradient_it_has_alone(
    specs, tmp_path, monkeypatch
):
    # at the paper's rates rounding grows tenfold a step, so each step is compared by itself
    compared = []
    original = ScoringTrainer.training_step

    def checked(self, model, rows, *args, **kwargs):
        steps = model.smop_layer["default"].steps
        before = steps.clone()
        alone = self._alone(model, rows)
        parameters = {n: p for n, p in model.named_parameters() if p.grad is not None}
        gradients = {name: p.grad.clone() for name, p in parameters.items()}
        model.zero_grad()
        steps.copy_(before)
        loss = original(self, model, rows, *args, **kwargs)
        assert_close(loss, alone, rtol=1e-5, atol=1e-6)
        for name, gradient in gradients.items():
            assert_close(parameters[name].grad, gradient, rtol=1e-3, atol=5e-5)
        compared.append(self.args.seed)
        return loss

    monkeypatch.setattr(ScoringTrainer, "training_step", checked)
    run_packed(specs, [tmp_path / str(i) for i in range(len(specs))])
    assert sorted(compared) == sorted(list(range(len(specs))) * 24)


def test_a_run_that_stops_early_leaves_and_its_result_is_there_before_the_others_end(
    specs, tmp_path, monkeypatch
):
    hasty = specs[0].model_copy(
        update={"training": specs[0].training.model_copy(update={"max_steps": 7})}
    )
    seen = []
    original = ScoringTrainer.training_step

    def watched(self, *args, **kwargs):
        seen.append((self.args.seed, (tmp_path / "a" / "result.json").is_file()))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ScoringTrainer, "training_step", watched)
    first, second = run_packed([hasty, specs[1]], [tmp_path / "a", tmp_path / "b"])
    assert (first.training.steps, second.training.steps) == (7, 24)
    assert [seed for seed, _ in seen].count(0) == 7
    assert all(done for seed, done in seen if seed == 1) is False
    assert all(done for seed, done in seen[7 + 8 :])


@pytest.mark.parametrize("place", ["in a step", "between two saves", "at the first save"])
def test_a_killed_and_resumed_pack_ends_with_the_weights_of_one_never_killed(
    specs, tmp_path, monkeypatch, place
):
    chosen = specs[:3]
    whole = [tmp_path / f"whole{i}" for i in range(3)]
    killed = [tmp_path / f"killed{i}" for i in range(3)]
    run_packed(chosen, whole)
    with monkeypatch.context() as patched:
        if place == "in a step":
            step = ScoringTrainer.training_step

            def dies(self, *args, **kwargs):
                if self.state.global_step == 15 and self.args.seed == 1:
                    raise KeyboardInterrupt
                return step(self, *args, **kwargs)

            patched.setattr(ScoringTrainer, "training_step", dies)
        else:
            save, at = CompleteCheckpoint.on_save, 6 if "first" in place else 12

            def dies(self, args, state, control, **kwargs):
                if state.global_step == at and args.seed == 1:
                    raise KeyboardInterrupt
                return save(self, args, state, control, **kwargs)

            patched.setattr(CompleteCheckpoint, "on_save", dies)
        with pytest.raises(KeyboardInterrupt):
            run_packed(chosen, killed)
    resumed = run_packed(chosen, killed, resume=True)
    assert all(result.training.steps == 24 for result in resumed)
    for one, other in zip(whole, killed, strict=True):
        expected, found = adapter(one), adapter(other)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert (one / "predictions.jsonl").read_text() == (other / "predictions.jsonl").read_text()


def test_a_run_that_diverges_ends_alone_and_its_error_is_its_outcome(specs, tmp_path):
    options = specs[0].training.model_copy(update={"learning_rate": 1e38})
    wild = specs[0].model_copy(update={"training": options})
    error, result = run_packed([wild, specs[1]], [tmp_path / "a", tmp_path / "b"])
    assert isinstance(error, DivergedError)
    assert result.training.steps == 24
    assert not (tmp_path / "a" / "result.json").exists()


def test_runs_that_cannot_share_a_pass_are_refused_with_the_reason(specs, tmp_path):
    def with_method(**method):
        return specs[0].model_copy(
            update={"method": type(specs[0].method).model_validate(method), "seed": 9}
        )

    for method, reason in (
        ({"name": "lora"}, "only adapters of the SMoP family can be packed"),
        (
            {"name": "smop", "routing": "released"},
            "its neighbours' prompts, so it cannot be packed",
        ),
    ):
        with pytest.raises(SMoPError, match=reason):
            run_packed(
                [specs[1], with_method(**method)],
                [tmp_path / f"{part}-{method.get('routing')}" for part in "ab"],
            )
    one, other = (load_backbone("embedded", labels=2).model for _ in range(2))
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    models = [get_peft_model(model, SMoPConfig(task_type="SEQ_2_SEQ_LM")) for model in (one, other)]
    with pytest.raises(
        ConfigError, match=r"share one frozen backbone, but theirs differ in .*weight"
    ):
        share_backbone(*models)


def test_a_study_packs_what_can_be_packed_and_runs_the_rest_alone(small_medley, tmp_path):
    common = {
        "task": str(small_medley),
        "model": "embedded",
        "training": {"max_steps": 4, "eval_steps": 2, "batch_size": 8},
    }
    chosen = [variant("smop"), variant("lora-8"), variant("single")]
    packs = partial(run_locally, pack=3)
    groups = study(common, chosen, seeds=[0, 1], trials=1, output=tmp_path, engine=packs)
    packed = {
        name: [json.loads((p / "result.json").read_text())["training"]["packed"] for p in paths]
        for name, paths in groups.items()
    }
    assert packed == {"smop": [3, 3], "lora-8": [1, 1], "single": [3, 1]}
    entries = json.loads((tmp_path / "search.json").read_text())["methods"]
    assert [entry["method"] for entry in entries] == ["smop", "lora-8", "single"]
