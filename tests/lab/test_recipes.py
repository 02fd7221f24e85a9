"""Learning rates where none is given: on the backbone's own scale, or the paper's."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from peft_smop.errors import ConfigError
from peft_smop.lab import RunSpec, run, variant
from peft_smop.results import RunDirectory
from peft_smop.training import absolute_rate
from peft_smop.tuner.initialisation import spread_of


@pytest.mark.parametrize(
    ("rate", "spread", "expected"),
    [
        ("0.4x", 1.3253, 0.5),  # 0.5301
        ("1.5x", 1.3253, 2.0),  # 1.9880
        ("1.5x", 0.0537, 0.08),  # 0.0806
        ("1.5x", 0.136, 0.2),  # 0.2040
        ("1x", 0.25, 0.2),
        ("1.5x", 9.0, 10.0),  # 13.5
        (0.3, 9.0, 0.3),
        (1, 9.0, 1),
    ],
)
def test_a_relative_rate_is_a_product_to_one_digit(rate, spread, expected):
    assert absolute_rate(rate, spread) == expected


def test_the_spread_is_that_of_the_common_tokens():
    embedding = torch.nn.Embedding(6000, 4)
    with torch.no_grad():
        embedding.weight[5000:] = 100.0  # rare tokens do not count
    assert spread_of(embedding) == pytest.approx(embedding.weight[:5000].std().item())


def spec(toy_task, model, method="single", **training):
    one = variant(method)
    return RunSpec.of(
        {
            "task": str(toy_task),
            "model": model,
            "method": one.method,
            "training": {"max_steps": 2, "eval_steps": 2, **one.training, **training},
        }
    )


@pytest.mark.parametrize("recipe", ["default", "paper"])
@pytest.mark.parametrize("method", ["single", "smop", "prompt-tuning-5", "lora-8"])
def test_a_run_has_its_recipes_rate_and_says_so(toy_task, saved_models, tmp_path, method, recipe):
    model = saved_models["bert"]
    result = run(spec(toy_task, model, method, recipe=recipe), tmp_path / "run")
    bare = AutoModelForSequenceClassification.from_pretrained(model).get_input_embeddings()
    own = float(f"{1.5 * spread_of(bare):.1g}")
    of_weights = {"default": 3e-3, "paper": 1e-4}[recipe]
    of_prompts = {"default": own, "paper": 0.5}[recipe]
    wanted = of_weights if method == "lora-8" else of_prompts
    assert result.training.learning_rate == wanted
    assert result.training.recipe == recipe
    # and the optimizer had it: the second of two steps of a linear decline is at half of it
    rates = [
        row["learning_rate"]
        for row in RunDirectory(tmp_path / "run").read_metrics()
        if "loss" in row
    ]
    assert rates
    assert max(rates) <= max(wanted, 1e-2) * 1.0001  # the head's rate is 0.01


def test_a_rate_that_is_given_is_the_rate(toy_task, saved_models, tmp_path):
    model = saved_models["llama"]
    said = run(spec(toy_task, model, learning_rate=0.25), tmp_path / "absolute")
    assert said.training.learning_rate == 0.25
    bare = AutoModelForCausalLM.from_pretrained(model).get_input_embeddings()
    relative = run(spec(toy_task, model, "single:lr=2x"), tmp_path / "relative")
    assert relative.training.learning_rate == float(f"{2 * spread_of(bare):.1g}")


@pytest.mark.parametrize("wrong", ["0.4", "x", "-1x", "0x", "0.4y", 0.0, -1.0, "nan", "infx"])
def test_what_is_no_rate_is_refused(toy_task, saved_models, wrong):
    with pytest.raises(ConfigError, match="learning_rate"):
        spec(toy_task, saved_models["bert"], learning_rate=wrong)


def test_an_unknown_recipe_is_refused(toy_task, saved_models):
    with pytest.raises(ConfigError, match="'default' or 'paper'"):
        spec(toy_task, saved_models["bert"], recipe="chef")


def test_a_search_has_as_many_rates_by_either_recipe():
    for name in ("smop", "single", "prompt-tuning-20", "p-tuning-20", "lora-8", "full"):
        assert len(variant(name).rates("default")) == len(variant(name).rates("paper"))
    assert variant("smop").rates("paper") == (0.5, 0.3, 0.1)
    assert variant("smop").rates("default")[0] == "1.5x"


def test_a_run_keeps_what_its_recipe_meant(toy_task, saved_models, tmp_path):
    asked = spec(toy_task, saved_models["bert"])
    first = run(asked, tmp_path / "run")
    kept = RunSpec.load(tmp_path / "run" / "spec.yaml").training
    assert (kept.learning_rate, kept.dropout) == ("1.5x", False)
    assert run(asked, tmp_path / "run", resume=True) == first
    # said is as good as meant
    said = spec(toy_task, saved_models["bert"], learning_rate="1.5x", dropout=False)
    assert run(said, tmp_path / "run", resume=True) == first


@pytest.mark.parametrize("option", ["learning_rate", "dropout"])
def test_a_run_of_a_version_that_did_not_keep_it_is_not_gone_on_with(
    toy_task, saved_models, tmp_path, option
):
    asked = spec(toy_task, saved_models["bert"])
    run(asked, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    place = tmp_path / "run" / "spec.yaml"
    lines = place.read_text().splitlines()
    old = [f"  {option}: null" if line.startswith(f"  {option}:") else line for line in lines]
    assert old != lines
    place.write_text("\n".join(old))
    with pytest.raises(ConfigError, match=f"does not say its {option}"):
        run(asked, tmp_path / "run", resume=True)
