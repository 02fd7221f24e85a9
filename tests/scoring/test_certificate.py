"""The certificate's scores are those that each chooser has, and its sentence says what they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from peft_smop import SMoPConfig
from peft_smop.errors import ConfigError
from peft_smop.scoring import certify, formulate, predict
from peft_smop.scoring.certificate import Interval
from peft_smop.tasks import Example, Task
from tiny import decided

TASK = Task("toy", "{text}", ("warm", "cold"), ("warm", "cold answer:"))


@pytest.fixture(scope="module")
def setting(saved_models):
    base = AutoModelForSeq2SeqLM.from_pretrained(saved_models["t5"])
    tokenizer = AutoTokenizer.from_pretrained(saved_models["t5"])
    model = decided(
        get_peft_model(base, SMoPConfig(task_type="SEQ_2_SEQ_LM", num_prompts=3)), seed=8
    )
    put = formulate(TASK, base, tokenizer, task_type="SEQ_2_SEQ_LM", max_length=40)
    animals = ("cat", "dog", "cow", "hen", "owl", "fox")
    examples = [
        Example(str(i), f"the {animals[i % 6]} is red {animals[i * 5 % 6]}", i % 2,
                population=("barn", "wood")[i % 3 == 0])
        for i in range(40)
    ]  # fmt: skip
    return model, put, examples


def accuracy(predictions, examples):
    right = [p.label == e.label for p, e in zip(predictions, examples, strict=True)]
    return 100 * np.mean(right)


def test_every_score_is_that_of_its_chooser(setting):
    model, put, examples = setting
    found = certify(model, put, examples)
    forced, scores = [], []
    for j in range(3):
        with model.forced_prompt(j):
            own = predict(model, put, examples)
        forced.append(accuracy(own, examples))
        scores.append([p.log_probabilities for p in own])
    likely = torch.tensor(scores).log_softmax(dim=-1)
    truth = torch.tensor([e.label for e in examples])
    assert found.router.value == pytest.approx(accuracy(predict(model, put, examples), examples))
    assert found.single.value == pytest.approx(max(forced))
    assert found.best_prompt == int(np.argmax(forced))
    mixed = likely.exp().mean(dim=0).argmax(dim=-1)
    assert found.uniform.value == pytest.approx(100 * (mixed == truth).float().mean().item())
    best = likely[:, torch.arange(40), truth].argmax(dim=0)
    right = likely[best, torch.arange(40)].argmax(dim=-1) == truth
    assert found.bound.value == pytest.approx(100 * right.float().mean().item())
    assert found.worth.value == pytest.approx(found.router.value - found.single.value)
    assert found.regret.value == pytest.approx(found.bound.value - found.router.value)
    for own in (found.router, found.single, found.bound, found.worth):
        assert own.low <= own.value <= own.high
    assert sum(found.load) == pytest.approx(1)
    assert set(found.table) == {"label", "population"}
    for shares in found.table["population"].values():
        assert sum(shares) == pytest.approx(1)
    assert set(found.information) == {"label", "length", "population"}


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (12.0, 20.0, "routing is worth +12.0 to +20.0 points over the best single prompt here"),
        (-2.0, 1.5, "holds 0: nothing shows that this task needs more than one prompt"),
        (-9.0, -3.0, "routing costs 3.0 to 9.0 points"),
    ],
)
def test_the_verdict_follows_the_interval(setting, low, high, said):
    found = certify(*setting)
    worth = Interval((low + high) / 2, low, high)
    assert said in replace(found, worth=worth, disagreement=40.0).verdict
    if high < 0:
        better = replace(found, worth=worth, disagreement=40.0, single=Interval(50, 40, 60))
        little = replace(better, bound=Interval(54, 44, 64)).verdict
        assert little.endswith("this task needs one prompt")
        much = replace(better, bound=Interval(75, 65, 85)).verdict
        assert "one prompt does better than this router" in much
        assert "would add 25.0 points" in much
    alike = replace(found, worth=worth, disagreement=0.0)
    assert "nothing to choose between" in alike.verdict


def test_what_has_no_router_has_no_certificate(saved_models, setting):
    _, put, examples = setting
    base = AutoModelForSeq2SeqLM.from_pretrained(saved_models["t5"])
    with pytest.raises(ConfigError, match="adapter with a router"):
        certify(base, put, examples)
    single = get_peft_model(base, SMoPConfig(task_type="SEQ_2_SEQ_LM", routing="single"))
    with pytest.raises(ConfigError, match="this one has none"):
        certify(single, put, examples)


def test_the_command_prints_writes_and_draws(smop, toy_task, saved_models, tmp_path):
    run = tmp_path / "run"
    code, _, err = smop(
        "train", "--task", toy_task, "--model", saved_models["t5"], "--method",
        "smop-posterior:k=2", "--max-steps", 2, "--lr", "0.4x", "--dropout", "--output", run,
    )  # fmt: skip
    assert code == 0, err
    code, out, err = smop("routes", run, "--output", tmp_path / "routes")
    assert code == 0, err
    assert "best single prompt (number" in out
    assert "best single prompt here" in out
    record = json.loads((tmp_path / "routes" / "routes.json").read_text())
    assert record["verdict"] in " ".join(out.split())
    assert (tmp_path / "routes" / "routes.png").stat().st_size > 10_000
    code, _, err = smop("routes", run, "--output", run / "result.json")
    assert code == 2
    assert "is a file; expected a directory" in err
