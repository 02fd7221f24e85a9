"""An adapter's directory is enough to answer with, alone or beside others."""

import json
import re
import shutil

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close

from answering import MOOD, PAIR, TEXTS, backbone, save_adapter
from peft_smop import Predictor
from peft_smop.errors import CheckpointError, ConfigError, DataError, SMoPError
from peft_smop.scoring import formulate, predict


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Five adapters of two tasks: mixtures, a single prompt and PEFT's prompt tuning."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "mood": save_adapter(folder / "mood", 1),
        "pair": save_adapter(folder / "pair", 2, PAIR, num_prompts=2, num_virtual_tokens=5),
        "one": save_adapter(folder / "one", 3, routing="single"),
        "plain": save_adapter(folder / "plain", 4, PAIR, plain=True),
        "wide.1": save_adapter(folder / "wide", 5, num_prompts=7),
    }


def fields(name, text):
    return text if name in ("mood", "one", "wide.1") else {"one": text, "two": "a cat"}


def equal(one, other):
    assert (one.label, one.prompt, one.adapter) == (other.label, other.prompt, other.adapter)
    assert_close(one.probabilities, other.probabilities, rtol=1e-4, atol=1e-5)
    assert_close(one.prompt_probability, other.prompt_probability, rtol=1e-4, atol=1e-5)


def test_it_says_what_scoring_says(adapters):
    answers = Predictor.load(adapters["mood"]).predict(TEXTS)
    loaded = backbone()
    model = PeftModel.from_pretrained(loaded.model, str(adapters["mood"]))
    put = formulate(MOOD, loaded.model, loaded.tokenizer, task_type="SEQ_2_SEQ_LM", max_length=512)
    from peft_smop.tasks import Example

    expected = predict(model, put, [Example(str(i), t, None) for i, t in enumerate(TEXTS)])
    assert [a.label for a in answers] == [MOOD.labels[p.label] for p in expected]
    assert [a.prompt for a in answers] == [p.prompt for p in expected]
    assert len({a.prompt for a in answers}) > 1
    for answer, said in zip(answers, expected, strict=True):
        scores = torch.tensor(said.log_probabilities).softmax(0).tolist()
        assert_close(list(answer.probabilities.values()), scores, rtol=1e-5, atol=1e-6)
        assert answer.confidence == max(answer.probabilities.values())


def test_rows_of_five_adapters_in_one_call_are_answered_as_by_each_alone(adapters):
    together = Predictor.load(adapters)
    rows = [(name, fields(name, text)) for text in TEXTS for name in adapters]
    answers = together.predict([row for _, row in rows], adapters=[name for name, _ in rows])
    for name, path in adapters.items():
        alone = Predictor.load({name: path})
        own = [row for which, row in rows if which == name]
        for one, other in zip(
            alone.predict(own), [a for a in answers if a.adapter == name], strict=True
        ):
            equal(one, other)
    assert {len(a.probabilities) for a in answers} == {2, 3}


def test_plain_prompt_tuning_is_answered_as_peft_answers_it(adapters):
    answers = Predictor.load(adapters["plain"]).predict([fields("plain", t) for t in TEXTS])
    loaded = backbone()
    model = PeftModel.from_pretrained(loaded.model, str(adapters["plain"]))
    put = formulate(PAIR, loaded.model, loaded.tokenizer, task_type="SEQ_2_SEQ_LM", max_length=512)
    from peft_smop.tasks import Example

    examples = [Example(str(i), f"{t} and a cat", None) for i, t in enumerate(TEXTS)]
    for answer, said in zip(answers, predict(model, put, examples), strict=True):
        scores = torch.tensor(said.log_probabilities).softmax(0).tolist()
        assert_close(list(answer.probabilities.values()), scores, rtol=1e-4, atol=1e-5)


def test_an_adapter_s_directory_is_enough_from_anywhere(adapters, tmp_path, monkeypatch):
    expected = Predictor.load(adapters["pair"]).predict([fields("pair", t) for t in TEXTS])
    shutil.copytree(adapters["pair"], tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = Predictor.load("moved")
    assert list(moved.adapters) == ["moved"]
    assert moved.task() == PAIR
    found = moved.predict([fields("pair", t) for t in TEXTS])
    assert [a.probabilities for a in found] == [a.probabilities for a in expected]


def test_adapters_come_and_go(adapters):
    predictor = Predictor.load({"a": adapters["mood"]})
    before = predictor.predict(TEXTS)
    predictor.add("b", adapters["wide.1"])
    mixed = predictor.predict(TEXTS, adapters=["a", "b", "a", "b", "a"])
    assert [m.adapter for m in mixed] == ["a", "b", "a", "b", "a"]
    equal(mixed[2], before[2])
    with pytest.raises(ConfigError, match="name one of a, b"):
        predictor.predict(TEXTS)
    with pytest.raises(ConfigError, match="loaded already"):
        predictor.add("b", adapters["one"])
    predictor.remove("a")
    assert [a.adapter for a in predictor.predict(TEXTS)] == ["b"] * 5
    equal(predictor.predict(TEXTS)[1], mixed[1])
    with pytest.raises(ConfigError, match="only adapter"):
        predictor.remove("b")
    with pytest.raises(ConfigError, match="unknown adapter 'a'"):
        predictor.predict(TEXTS, adapters="a")


def test_one_that_does_not_load_leaves_the_others_as_they_were(adapters, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(adapters["wide.1"], broken)
    path = broken / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    predictor = Predictor.load({"a": adapters["mood"], "b": adapters["one"]})
    before = predictor.predict(TEXTS, adapters="a")
    with pytest.raises(CheckpointError, match="damaged"):
        predictor.add("c", broken)
    assert list(predictor.adapters) == ["a", "b"]
    assert predictor.predict(TEXTS, adapters="a") == before


def test_adapters_of_different_precision_do_not_share_a_backbone_in_silence(adapters, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(adapters["one"], other)
    said = json.loads((other / "predictor.json").read_text())
    (other / "predictor.json").write_text(json.dumps({**said, "precision": "bf16"}))
    with pytest.raises(ConfigError, match="trained on a backbone in torch"):
        Predictor.load({"a": adapters["mood"], "b": other})
    assert Predictor.load(other).predict([TEXTS[0]])[0].label  # alone it answers in its own


def test_it_writes_as_the_model_does(adapters):
    together = Predictor.load(adapters)
    rows = [("mood", TEXTS[0]), ("wide.1", TEXTS[1]), ("one", TEXTS[2])]
    written = together.generate(
        [t for _, t in rows], adapters=[n for n, _ in rows], max_new_tokens=6, do_sample=False
    )
    for (name, text), said in zip(rows, written, strict=True):
        alone = Predictor.load({name: adapters[name]})
        assert alone.generate([text], max_new_tokens=6, do_sample=False) == [said]


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (["fine", ""], DataError, "input 2, row 1: field 'text' is empty"),
        ([{"txt": "a"}], DataError, "no field 'text' beside txt"),
        ([{"text": None}], DataError, "field 'text' is None"),
        ([3], ConfigError, "input 1 is a int"),
        ("alone", ConfigError, "put the one into brackets"),
    ],
)
def test_inputs_that_cannot_be_used(adapters, inputs, error, words):
    predictor = Predictor.load(adapters["mood"])
    with pytest.raises(error, match=words):
        predictor.predict(inputs)


def test_no_inputs_are_no_answers(adapters):
    assert Predictor.load(adapters["mood"]).predict([]) == []


def test_a_long_input_is_cut_and_said_to_be(adapters):
    long = "the old bridge " * 400
    answer, short = Predictor.load(adapters["mood"]).predict([long, TEXTS[0]])
    assert answer.truncated
    assert not short.truncated
    assert answer.as_dict()["truncated"]


def test_an_adapter_without_its_task_needs_one(tmp_path):
    path = save_adapter(tmp_path / "bare", 6, beside=False)
    with pytest.raises(ConfigError, match="give --task"):
        Predictor.load(path)
    (tmp_path / "t.yaml").write_text(
        "name: t\ntemplate: '{text}'\nlabels: {yes: good, no: bad}\ndata: not-here.csv\n"
    )
    answer = Predictor.load(path, task=tmp_path / "t.yaml").predict(TEXTS[:1])[0]
    assert set(answer.probabilities) == {"yes", "no"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 9}, "format 9"),
        ({"extra": 1}, "expected format 1"),
        ({"max_length": "long"}, "max_length is 'long'"),
        ({"task": {"name": "x"}}, "cannot be read as a task"),
        ({"task": 3}, "cannot be read as a task"),
    ],
)
def test_what_stands_beside_it_may_be_damaged(adapters, tmp_path, change, words):
    shutil.copytree(adapters["mood"], tmp_path / "a")
    path = tmp_path / "a" / "predictor.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SMoPError, match=words):
        Predictor.load(tmp_path / "a")


@pytest.mark.parametrize("below", ["mood", "run/adapter", "runs/run/adapter"])
def test_of_a_directory_that_holds_adapters_one_is_named(adapters, tmp_path, below):
    shutil.copytree(adapters["mood"], tmp_path / below)
    with pytest.raises(CheckpointError, match=f"such as {re.escape(str(tmp_path / below))}$"):
        Predictor.load(tmp_path)
    (tmp_path / below / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"expected the directory of a saved adapter$"):
        Predictor.load(tmp_path)


def test_two_directories_of_one_name_are_told_apart_or_refused(adapters, tmp_path):
    shutil.copytree(adapters["mood"], tmp_path / "mood")
    with pytest.raises(ConfigError, match="NAME=DIRECTORY"):
        Predictor.load([adapters["mood"], tmp_path / "mood"])
