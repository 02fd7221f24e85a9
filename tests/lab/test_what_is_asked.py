"""What is asked for is what runs, whoever says it and from wherever; contradictions are refused."""

import pytest
import yaml

from peft_smop.errors import ConfigError
from peft_smop.lab import RunSpec, name_of, variant
from peft_smop.plain_yaml import PlainYamlError, read_yaml


def named(text, **options):
    chosen = variant(text)
    content = {
        "task": "cb",
        "method": {**chosen.method, **options.pop("method", {})},
        "training": {**chosen.training, **options},
    }
    return name_of(RunSpec.of(content), chosen)


@pytest.mark.parametrize(
    ("text", "options", "name"),
    [
        ("smop", {}, "smop"),
        ("smop-posterior", {}, "smop-posterior"),
        ("smop:k=8", {"method": {"num_prompts": 2}}, "smop:k=2"),
        ("smop", {"method": {"num_prompts": 2, "num_virtual_tokens": 3}}, "smop:k=2:l=3"),
        ("smop", {"method": {"routing": "posterior"}}, "smop-posterior"),
        ("smop-top2", {"method": {"top_k": 1}}, "smop:top_k=1"),
        ("lora", {"method": {"rank": 8}}, "lora-8"),
        ("prompt-tuning-5", {"method": {"num_virtual_tokens": 7}}, "prompt-tuning:l=7"),
        ("smop:lr=0.3", {"learning_rate": 0.1}, "smop:lr=0.1"),
        ("smop-unperturbed", {"method": {"num_prompts": 2}}, "smop-unperturbed:k=2"),
    ],
)
def test_a_run_is_named_after_what_runs(text, options, name):
    assert named(text, **options) == name
    assert name_of(RunSpec.of({"task": "cb", "method": variant(name).method}), variant(name))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--lr", 0.3, "--set", "learning_rate=0.1"),
        ("-k", 2, "--set", "num_prompts=4"),
        ("--max-steps", 3, "--set", "max_steps=4"),
    ],
)
def test_an_option_that_is_said_twice_and_differently_is_refused(smop, arguments):
    code, _, err = smop("train", "-t", "medley", "-m", "embedded", *arguments)
    assert code == 2
    assert "contradicts" in err


def test_paths_in_a_spec_mean_the_same_from_everywhere(
    toy_task, saved_models, tmp_path, monkeypatch
):
    monkeypatch.chdir(toy_task.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = RunSpec.of({"task": "toy.yaml", "data": "somewhere", "method": {"init_adapter": "x"}})
    spec.save(tmp_path / "deep" / "spec.yaml")
    monkeypatch.chdir(tmp_path)
    again = RunSpec.load(tmp_path / "deep" / "spec.yaml")
    assert again == spec
    assert again.task == str(toy_task)
    # written by hand, paths are relative to the file
    (tmp_path / "mine.yaml").write_text("task: a/b.yaml\nmodel: t5-base\n")
    monkeypatch.chdir("/")
    mine = RunSpec.load(tmp_path / "mine.yaml")
    assert mine.task == str(tmp_path / "a" / "b.yaml")
    assert mine.model == "t5-base"


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "line 2: an alias, *a0; write out"),
        ("task: cb\ntask: rte\n", "line 2: key 'task' twice"),
        ("task: [", "not YAML"),
        ("- task\n", "expected keys such as task, model and method"),
        ("", "expected keys such as task, model and method"),
        ("[" * 5000, "nested too deeply"),
        ("task: 2026-99-99\n", "a value that cannot be"),
        ("? [a]\n: b\n", "a key that is no word"),
        ("\x00", "not YAML"),
        ("task: cb\nsede: 3\n", "unknown key 'sede'; did you mean seed"),
        ("task: cb\nseed: many\n", "seed='many' must be a valid integer"),
        ("seed: 1\n", "no key 'task'"),
        (f"task: cb\nmodel: [{'x' * 9999}]\n", "model=["),
    ],
)
def test_a_spec_that_cannot_be_is_one_short_sentence(tmp_path, text, words):
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(ConfigError) as told:
        RunSpec.load(tmp_path / "spec.yaml")
    assert words in str(told.value)
    assert str(tmp_path / "spec.yaml") in str(told.value)
    assert len(str(told.value)) < 700


def test_a_task_s_yaml_with_aliases_is_refused(smop, tmp_path):
    (tmp_path / "task.yaml").write_text(BOMB)
    code, _, err = smop("train", "-t", tmp_path / "task.yaml", "-m", "embedded")
    assert code == 2
    assert "an alias" in err
    assert len(err) < 700


def test_numbers_are_numbers():
    assert read_yaml("[1e-4, 5E3, .5, 1e5, 3, yes]") == [1e-4, 5e3, 0.5, 1e5, 3, True]
    assert read_yaml("1e-4x") == "1e-4x"
    assert read_yaml(yaml.safe_dump({"a": [1, 2.5, "x", None]})) == {"a": [1, 2.5, "x", None]}
    with pytest.raises(PlainYamlError):
        read_yaml("{a: &x 1, b: *x}")
