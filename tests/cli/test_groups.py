"""Options that commands have from the fields of methods and of training."""

import json
import math
import re
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
    flat = " ".join(out.replace("│", " ").split()).lower()
    for field in fields_of(TrainingFields):
        name = "--lr" if field.name == "learning_rate" else option_of(field)
        assert name in words(out), name
        if field.name == "learning_rate":
            continue  # of a sweep it is a list
        first = " ".join(field.help.split()[:2]).rstrip(";,")
        assert first.lower() in flat, field.name
        assert all(word in flat for word in field.choices), field.name


def words(out: str) -> set[str]:
    return set(re.findall(r"--[\w-]+", out))


def test_a_sweep_s_help_tells_no_default_that_its_file_may_change(smop):
    _, out, _ = smop("sweep", "--help")
    assert "[default: 50]" not in out
    _, out, _ = smop("train", "--help")
    assert "[default: 50]" in out


def test_every_option_of_a_method_is_one_of_train(smop):
    _, out, _ = smop("train", "--help")
    for field in fields_of(MethodFields):
        if field.name != "name":
            assert option_of(field) in words(out), field.name


def test_what_was_not_said_is_not_handed_on_and_flags_say_the_other_than_the_default():
    heard = {}

    @with_groups(training=training_group())
    def command(*, training: dict[str, Any]) -> None:
        heard.update(training)

    unsaid = dict.fromkeys(training_group().parameters)
    command(**unsaid)
    assert heard == {}
    said = {"prune_prompts": True, "gradient_checkpointing": True, "learning_rate": "0.3"}
    command(**{**unsaid, **said})
    assert heard == {"prune_prompts": False, "gradient_checkpointing": True, "learning_rate": 0.3}
    for way in (True, False):
        heard.clear()
        command(**{**unsaid, "dropout" if way else "no_dropout": True})
        assert heard == {"dropout": way}
    with pytest.raises(ConfigError, match="--dropout contradicts --no-dropout"):
        command(**{**unsaid, "dropout": True, "no_dropout": True})
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
        ("train", ("--batch-size", "3", "--set", "batch_size=4", "contradicts --batch-size 3;")),
        ("train", ("-k", "3", "--set", "num_prompts=4", "contradicts --num-prompts 3;")),
        (
            "train",
            (
                "--no-perturbation",
                "--set",
                "perturbation=true",
                "--set perturbation=true contradicts --no-perturbation;",
            ),
        ),
        ("compare", ("--epochs", "3", "--set", "epochs=4", "contradicts --epochs 3.0;")),
        ("sweep", ("--no-dropout", "--set", "dropout=true", "contradicts --no-dropout;")),
        ("train", ("--set", "rank=1", "--set", "rank=2", "--set rank is given twice")),
        ("sweep", ("--set", "epochs=1", "--set", "epochs=2", "--set epochs is given twice")),
        ("train", ("--lr", "null", "must be a number above 0")),
        ("train", ("--init-text", "foo", "init_text='foo' has no effect on init='vocabulary'")),
        ("train", ("--init-std", "3", "init_std=3.0 has no effect on init='vocabulary'")),
        ("train", ("--init", "normal", "--init-adapter", "x", "has no effect on init='normal'")),
    ],
)
def test_an_option_said_twice_or_without_effect_is_refused(smop, toy_task, command, arguments):
    *given, message = arguments
    code, _, err = smop(command, "-t", toy_task, "-m", "embedded", *given)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_an_option_changes_what_a_method_s_name_says_and_that_is_told(
    smop, toy_task, saved_models, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    quick = ("-t", toy_task, "-m", saved_models["t5"], "--max-steps", 2, "--batch-size", 4)
    code, _, err = smop("train", *quick, "--method", "smop:k=3:lr=0.3", "-k", 2, "--lr", "0.3")
    assert code == 0, err
    said = " ".join(err.split())
    assert "note: num_prompts is 2, as its own option says, not 3 as in --method smop:k=3" in said
    assert "learning_rate is" not in said  # said twice alike
    (run,) = (tmp_path / "runs").iterdir()
    assert "smop-k=2" in run.name


def test_a_variant_s_own_rate_stands_against_the_one_for_all(
    smop, toy_task, saved_models, tmp_path
):
    code, out, err = smop(
        "compare", "-t", toy_task, "-m", saved_models["t5"], "--methods", "single:lr=0.3,lora-8",
        "-o", tmp_path, "--seeds", 1, "--max-steps", 2, "--batch-size", 4, "--lr", "0.1",
    )  # fmt: skip
    assert code == 0, err
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    rates = {one["method"]["name"]: one["training"]["learning_rate"] for one in results}
    assert rates == {"single": 0.3, "lora": 0.1}
    assert "worth of routing" not in out  # nothing routes here


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be above 0"),
        ({"max_padding": 0.5}, "max_padding=0.5 must be at least 1"),
        ({"warmup_ratio": 1.0}, "warmup_ratio=1.0 must be below 1"),
        ({"optimizer": "adam"}, "optimizer='adam' must be one of 'adafactor', 'adamw_torch'"),
        ({"learning_rate": 0}, "learning_rate=0 must be a number above 0, or of spreads"),
        ({"learning_rate": "fast"}, "learning_rate='fast' must be a number above 0"),
        ({"learning_rate": "0x"}, "learning_rate='0x' must be a number above 0"),
        ({"batch_size": 10**30}, "must be a whole number up to 9223372036854775807"),
        ({"max_steps": 2.5}, "max_steps=2.5 must be a whole number"),
        ({"max_steps": True}, "max_steps=True must be a whole number"),
        ({"epochs": "many"}, "epochs='many' must be a number"),
        ({"dropout": 1}, "dropout=1 must be true or false"),
        ({"init_text": 12}, "init_text=12 must be a text"),
        ({"position": "behind"}, "position='behind' must be one of 'before', 'after'"),
    ],
)
def test_values_are_refused_at_once_in_the_words_of_the_option(said, message):
    options = [f"{key}={value}" for key, value in said.items()]
    for ways in ((said, None), ({}, options)):
        with pytest.raises(ConfigError, match=re.escape(message)):
            joined(*ways, known=said)


@pytest.mark.parametrize("said", [math.inf, math.nan])
def test_what_is_not_finite_is_refused(said):
    with pytest.raises(ConfigError, match="must be a number above 0"):
        joined({"learning_rate": said}, None, known=())
    with pytest.raises(ConfigError, match="must be a finite number"):
        joined({"keep_texts": said}, None, known=())


def test_every_default_is_one_that_its_option_takes():
    for field in (*fields_of(MethodFields), *fields_of(TrainingFields)):
        field.check(field.default)
        field.check(None)


def test_said_twice_alike_is_said_once():
    known = ("epochs", "patience")
    found = joined({"epochs": 3.0}, ["epochs=3", "patience=2"], known)
    assert found == {"epochs": 3, "patience": 2}
    with pytest.raises(ConfigError, match=r"--set epochs=4 contradicts --epochs 3\.0"):
        joined({"epochs": 3.0}, ["epochs=4"], known)
