"""Options that commands have from the fields of methods and of training."""

import json
from typing import Any

import pytest

from peft_smop.cli.groups import joined, training_group, with_groups
from peft_smop.errors import ConfigError
from peft_smop.names import MethodFields, TrainingFields, fields_of


def option_of(field) -> str:
    dashed = field.name.replace("_", "-")
    return f"--no-{dashed}" if field.default is True else f"--{dashed}"


@pytest.mark.parametrize("command", ["train", "compare", "sweep"])
def test_every_option_of_training_is_one_of_each_command_with_its_help(smop, command):
    code, out, _ = smop(command, "--help")
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in out  # no name is cut
    for field in fields_of(TrainingFields):
        name = "--lr" if field.name == "learning_rate" else option_of(field)
        assert name in out, name
        if field.name == "learning_rate":
            continue  # of a sweep it is a list
        assert field.help, field.name
        assert all(word in out for word in field.choices), field.name


def test_every_option_of_a_method_is_one_of_train(smop):
    _, out, _ = smop("train", "--help")
    for field in fields_of(MethodFields):
        if field.name != "name":
            assert option_of(field) in out


def test_what_was_not_said_is_not_handed_on_and_flags_say_the_other_than_the_default():
    heard = {}

    @with_groups(training=training_group())
    def command(*, training: dict[str, Any]) -> None:
        heard.update(training)

    unsaid = dict.fromkeys(field.name for field in fields_of(TrainingFields))
    command(**unsaid)
    assert heard == {}
    command(**{**unsaid, "dropout": True, "gradient_checkpointing": True, "learning_rate": "0.3"})
    assert heard == {"dropout": False, "gradient_checkpointing": True, "learning_rate": 0.3}
    heard.clear()
    command(**{**unsaid, "learning_rate": "0.4x", "epochs": 2.0})
    assert heard == {"learning_rate": "0.4x", "epochs": 2.0}


def test_options_reach_a_sweep_s_runs(smop, toy_task, saved_models, tmp_path):
    code, _, err = smop(
        "sweep", "-t", toy_task, "-m", saved_models["t5"], "--methods", "single", "-o", tmp_path,
        "--max-steps", 2, "--eval-steps", 1, "--batch-size", 4, "--optimizer", "adamw_torch",
        "--no-dropout", "--set", "patience=3",
    )  # fmt: skip
    assert code == 0, err
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["training"]["steps"] == 2
    text = (result.parent / "spec.yaml").read_text()
    for line in ("batch_size: 4", "optimizer: adamw_torch", "dropout: false", "patience: 3"):
        assert line in text


def test_one_rate_for_all_methods_of_a_comparison(smop, toy_task, saved_models, tmp_path):
    code, out, err = smop(
        "compare", "-t", toy_task, "-m", saved_models["t5"], "--methods", "single,lora-8",
        "-o", tmp_path, "--seeds", 1, "--max-steps", 2, "--batch-size", 4, "--lr", "0.07",
    )  # fmt: skip
    assert code == 0, err
    assert out.count(" 0.07 ") == 2


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("train", ("--batch-size", "3", "--set", "batch_size=4")),
        ("train", ("-k", "3", "--set", "num_prompts=4")),
        ("train", ("--no-perturbation", "--set", "perturbation=true")),
        ("compare", ("--epochs", "3", "--set", "epochs=4")),
        ("sweep", ("--no-dropout", "--set", "dropout=true")),
    ],
)
def test_an_option_said_twice_in_two_ways_is_refused(smop, toy_task, command, arguments):
    code, _, err = smop(command, "-t", toy_task, "-m", "embedded", *arguments)
    assert code == 2
    assert "contradicts --" in err
    assert len(err.strip().splitlines()) == 1


def test_said_twice_alike_is_said_once():
    assert joined({"epochs": 3.0}, {"epochs": 3, "patience": 2}) == {"epochs": 3, "patience": 2}
    with pytest.raises(ConfigError, match=r"--set epochs=4 contradicts --epochs 3\.0"):
        joined({"epochs": 3.0}, {"epochs": 4})
