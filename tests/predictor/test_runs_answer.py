"""A run leaves an adapter that answers by itself, and a card that says what it is."""

import json
import shutil

import pytest

from peft_smop import Predictor
from peft_smop.errors import SMoPError

QUICK = ("--max-steps", 2, "--eval-steps", 1, "--batch-size", 8)


@pytest.fixture
def run(smop, toy_task, tmp_path):
    code, _, err = smop(
        "train", "-t", toy_task, "-m", "embedded", "-o", tmp_path / "run", "-k", 2, *QUICK
    )
    assert code == 0, err
    return tmp_path / "run"


def test_run_adapter_and_copied_adapter_say_the_same_as_the_run_s_own_predictions(run, tmp_path):
    text = "the cat is red number 0"
    shutil.copytree(run / "adapter", tmp_path / "copy")
    answers = [Predictor.load(p).predict([text]) for p in (run, run / "adapter", tmp_path / "copy")]
    assert answers[0][0].probabilities == answers[2][0].probabilities
    assert [a[0].adapter for a in answers] == ["run", "run", "copy"]
    as_earlier_versions_wrote_it(run)
    assert Predictor.load(run).predict([text]) == answers[0]


def as_earlier_versions_wrote_it(run):
    (run / "adapter" / "predictor.json").unlink()
    result = json.loads((run / "result.json").read_text())
    for key in ("format", "files", "sha256"):
        del result[key]
    (run / "result.json").write_text(json.dumps(result))


def test_the_card_says_task_split_score_certificate_cost_and_no_path(run, tmp_path):
    card = (run / "adapter" / "README.md").read_text()
    result = json.loads((run / "result.json").read_text())
    test = result["test"]
    for words in (
        "# toy: smop on embedded",
        "`{text}`",
        f"Test accuracy {test['value']:.1f} (95 % interval over examples {test['low']:.1f} to",
        f"always the majority label: {test['majority']:.1f}",
        result["split"]["test"],
        result["routing"]["verdict"],
        f"Trained {result['parameters']['trainable']:,} parameters",
        'Predictor.load("DIRECTORY")',
    ):
        assert words in card, words
    assert str(tmp_path) not in card
    assert "site-packages" not in card
    assert "/src/" not in card


def test_a_run_that_is_not_finished_does_not_answer(run):
    (run / "result.json").unlink()
    with pytest.raises(SMoPError, match="not finished"):
        Predictor.load(run)
